/**
 * `customvpn completions …` and `customvpn manual …`: the command line, described for shells and for man(1).
 */

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Argument, Command } from 'commander';
import { VpnError } from '../base/errors.ts';
import { commandTree } from './command-tree.ts';
import { COMPLETION_FILES, completionScript, SHELLS, type Shell } from './completions.ts';
import { manualPages } from './manual.ts';

/** @param program the whole command line, once it is complete */
export function completionsCommand(program: Command): Command {
  return new Command('completions')
    .description('print completions of this command line for a shell')
    .addArgument(new Argument('<shell>', 'whose completions').choices(SHELLS))
    .addHelpText(
      'after',
      `
Examples:
  customvpn completions bash > /usr/local/share/${COMPLETION_FILES.bash('customvpn')}
  customvpn completions zsh > /usr/local/share/zsh/site-functions/_customvpn
  customvpn completions fish > ~/.config/fish/completions/customvpn.fish`,
    )
    .action((shell: Shell) => {
      process.stdout.write(completionScript(shell, commandTree(program), program.name()));
    });
}

/** @param program the whole command line, once it is complete */
export function manualCommand(program: Command, version: string): Command {
  return new Command('manual')
    .description('write the manual pages into a folder')
    .argument('<folder>', 'where; made if it is not there')
    .option('--date <date>', 'date of the pages', today())
    .addHelpText('after', '\nExample:\n  customvpn manual /usr/local/share/man/man1')
    .action(async (folder: string, { date }: { date: string }) => {
      const pages = manualPages(commandTree(program), { program: program.name(), version, date });
      try {
        await mkdir(folder, { recursive: true });
        for (const [name, text] of pages) await writeFile(join(folder, name), text);
      } catch (cause) {
        const reason = cause instanceof Error ? cause.message : String(cause);
        throw new VpnError('ERR_USAGE', `cannot write the manual into ${folder}: ${reason}`, { cause });
      }
      process.stdout.write(`${pages.size} pages are in ${folder}; read one with: man ${join(folder, 'customvpn.1')}\n`);
    });
}

function today(): string {
  return new Date().toISOString().slice(0, 10);
}
