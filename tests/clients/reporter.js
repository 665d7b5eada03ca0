// Prints one line for each test, as tests/harness/runner.c counts them: ok, not ok (with the reason), skip.
export default async function* reporter(source) {
  for await (const event of source) {
    const { name, skip, details } = event.data || {};
    if (details && details.type === "suite") continue;
    if (event.type === "test:pass") yield skip ? `skip - ${name}: ${skip}\n` : `ok - ${name}\n`;
    if (event.type === "test:stderr") yield `# ${event.data.message.trimEnd().replaceAll("\n", "\n# ")}\n`;
    if (event.type !== "test:fail") continue;
    const error = details.error.cause || details.error;
    const text = String(error.stack || error.message || error).split("\n").slice(0, 30);
    yield `not ok - ${name}\n${text.map((line) => `#   ${line}`).join("\n")}\n`;
  }
}
