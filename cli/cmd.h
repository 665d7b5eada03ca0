/* cmd - the subcommands of the `pleiades` program, one cmd_NAME.c each.
 *
 * argv[0] is the command's name, argv[1..] its arguments; the value is the exit status: 0,
 * OPTS_EXIT_FAILURE (it went wrong, stderr says why) or OPTS_EXIT_USAGE (it was asked wrongly).
 * Main thread. The table that names them is in main.c. */
#ifndef CLI_CMD_H
#define CLI_CMD_H

int cmd_bench(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_keys(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_node(int argc, char **argv);
int cmd_render(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_shard(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_synth(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_tokenizer_gguf(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_version(int argc, char **argv);

#endif
