/**
 * `npm run check`: everything about the code that can be known without root, in under a minute.
 *
 * Types, lint and format, dead code, then the tests of the repository (architecture, documents, launcher) and the unit
 * tests. Prints a table; what failed is shown in full. `--fix` (`npm run format`) writes formatting and safe fixes instead.
 */

import { parseArgs } from 'node:util';
import { countsText, FORMATTER, row, runSuite, runTool, SUITES, strayTests, TOOLS, type ToolResult } from './suites.ts';

const { values } = parseArgs({ options: { fix: { type: 'boolean', default: false } } });

const ok = values.fix ? show(await runTool(FORMATTER)) : await check();
process.exitCode = ok ? 0 : 1;

async function check(): Promise<boolean> {
  const started = performance.now();
  const outcomes = (await Promise.all(TOOLS.map(runTool))).map(show);
  for (const suite of SUITES) {
    if (suite.name !== 'repository' && suite.name !== 'unit') continue;
    let output = '';
    const keep = (text: string): void => {
      output += text;
    };
    const result = await runSuite(suite, keep, { failuresOnly: true });
    if (result.failed > 0) process.stdout.write(`${output}\n`);
    console.log(row(result.failed === 0, `${suite.name} tests`, result.ms, countsText(result)));
    outcomes.push(result.failed === 0);
  }
  const stray = strayTests();
  if (stray.length > 0) console.log(`✖ in no suite, so never run: ${stray.join(', ')}`);
  const all = outcomes.every(Boolean) && stray.length === 0;
  console.log(row(all, 'check', performance.now() - started, all ? '' : 'failed'));
  return all;
}

function show(result: ToolResult): boolean {
  if (!result.ok) console.log(`${result.output.trimEnd()}\n`);
  console.log(row(result.ok, result.name, result.ms, ''));
  return result.ok;
}
