/* chat_format - the fixed strings of DeepSeek V4's conversation format: control tokens and
 * texts.
 *
 * Facts of the format, byte for byte; nothing here may be reworded. Control tokens are single
 * tokens of the vocabulary, and only the renderer may write them into a prompt. Constants only. */
#ifndef MODEL_CHAT_FORMAT_H
#define MODEL_CHAT_FORMAT_H

#define CHAT_BOS "<｜begin▁of▁sentence｜>"
#define CHAT_EOS "<｜end▁of▁sentence｜>"
#define CHAT_USER "<｜User｜>"
#define CHAT_ASSISTANT "<｜Assistant｜>"
#define CHAT_REMINDER "<｜latest_reminder｜>"
#define CHAT_THINK "<think>"
#define CHAT_THINK_END "</think>"
#define CHAT_DSML "｜DSML｜"

/* Internal tasks of the model's own product. */
#define CHAT_ACTION "<｜action｜>"
#define CHAT_QUERY "<｜query｜>"
#define CHAT_AUTHORITY "<｜authority｜>"
#define CHAT_DOMAIN "<｜domain｜>"
#define CHAT_TITLE "<｜title｜>"
#define CHAT_READ_URL "<｜read_url｜>"

#define CHAT_CONTROLS(X)                                                                   \
    X(CHAT_BOS) X(CHAT_EOS) X(CHAT_USER) X(CHAT_ASSISTANT) X(CHAT_REMINDER) X(CHAT_THINK)  \
    X(CHAT_THINK_END) X(CHAT_DSML) X(CHAT_ACTION) X(CHAT_QUERY) X(CHAT_AUTHORITY)          \
    X(CHAT_DOMAIN) X(CHAT_TITLE) X(CHAT_READ_URL)

/* Words of the tool markup: ordinary text around CHAT_DSML. */
#define CHAT_CALLS_OPEN "<" CHAT_DSML "tool_calls>"
#define CHAT_CALLS_CLOSE "</" CHAT_DSML "tool_calls>"
#define CHAT_INVOKE_OPEN "<" CHAT_DSML "invoke name=\""
#define CHAT_INVOKE_CLOSE "</" CHAT_DSML "invoke>"
#define CHAT_PARAMETER_OPEN "<" CHAT_DSML "parameter name=\""
#define CHAT_PARAMETER_CLOSE "</" CHAT_DSML "parameter>"
#define CHAT_RESULT_OPEN "<tool_result>"
#define CHAT_RESULT_CLOSE "</tool_result>"

/* The two texts of reasoning effort; which one goes with which effort differs by release. */
#define CHAT_EFFORT_TEXT_A \
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n" \
    "You MUST be very thorough in your thinking and comprehensively decompose the " \
    "problem to resolve the root cause, rigorously stress-testing your logic against all " \
    "potential paths, edge cases, and adversarial scenarios.\n" \
    "Explicitly write out your entire deliberation process, documenting every " \
    "intermediate step, considered alternative, and rejected hypothesis to ensure " \
    "absolutely no assumption is left unchecked.\n" \
    "\n"
#define CHAT_EFFORT_TEXT_B \
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n" \
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to " \
    "chance: exhaustively decompose the problem into its most fundamental components, " \
    "trace every causal chain to its root, and resolve the underlying cause rather than " \
    "any surface symptom.\n" \
    "Do not stop reasoning until you have independently verified the solution from " \
    "multiple angles and are certain that no assumption remains unchecked and no error " \
    "remains undiscovered.\n" \
    "\n"

/* Around the tools' schemas, one JSON line each; before the schema of the answer. */
#define CHAT_TOOLS_HEAD \
    "## Tools\n" \
    "\n" \
    "You have access to a set of tools to help answer the user's question. You can " \
    "invoke tools by writing a \"<｜DSML｜tool_calls>\" block like the following:\n" \
    "\n" \
    "<｜DSML｜tool_calls>\n" \
    "<｜DSML｜invoke name=\"$TOOL_NAME\">\n" \
    "<｜DSML｜parameter name=\"$PARAMETER_NAME\" " \
    "string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>\n" \
    "...\n" \
    "</｜DSML｜invoke>\n" \
    "<｜DSML｜invoke name=\"$TOOL_NAME2\">\n" \
    "...\n" \
    "</｜DSML｜invoke>\n" \
    "</｜DSML｜tool_calls>\n" \
    "\n" \
    "String parameters should be specified as is and set `string=\"true\"`. For all " \
    "other types (numbers, booleans, arrays, objects), pass the value in JSON format and " \
    "set `string=\"false\"`.\n" \
    "\n" \
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete " \
    "reasoning inside <think>...</think> BEFORE any tool calls or final response.\n" \
    "\n" \
    "Otherwise, output directly after </think> with tool calls or final response.\n" \
    "\n" \
    "### Available Tool Schemas\n" \
    "\n"
#define CHAT_TOOLS_TAIL \
    "\n" \
    "\n" \
    "You MUST strictly follow the above defined tool name and parameter schemas to " \
    "invoke tool calls.\n"
#define CHAT_SCHEMA_HEAD \
    "## Response Format:\n" \
    "\n" \
    "You MUST strictly adhere to the following schema to reply:\n"

#endif
