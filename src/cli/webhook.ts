/**
 * `customvpn webhook …`: the programs that are told what goes into the audit record, and what they were not told.
 */

import { Command } from 'commander';
import type { CliHost } from './host.ts';
import { gatewayState, jsonOutput } from './options.ts';
import { bad, formatAge, good, type OutputOptions, print, table, warning } from './output.ts';

interface StateOptions extends OutputOptions {
  state: string;
}

/** Nobody took what was posted for a test. */
const REFUSED_STATUS = 69;

export function webhookCommand(host: CliHost): Command {
  const command = new Command('webhook').description('programs that are told what goes into the audit record');
  const verb = (usage: string, description: string) =>
    command.command(usage).description(description).addOption(gatewayState()).addOption(jsonOutput());

  verb('list', 'webhooks, and how they are doing').action(async (options: StateOptions) => {
    await using gateway = await host.openGateway(options);
    print(await gateway['webhook.list']({}), options, (hooks) =>
      hooks.length === 0
        ? 'no webhooks; add one to the configuration, as [webhooks.NAME]'
        : [
            table(
              ['webhook', 'target', 'events', 'state', 'waiting', 'put aside', 'delivered', 'last'],
              hooks.map((hook) => [
                hook.name,
                hook.target,
                hook.events.join(' ') || 'all',
                hook.state === 'failing' ? bad(hook.state) : hook.state,
                String(hook.waiting),
                hook.dead === 0 ? '0' : warning(String(hook.dead)),
                String(hook.delivered),
                hook.lastDeliveredAt === null ? 'never' : `${formatAge(hook.lastDeliveredAt)} ago`,
              ]),
            ),
            ...hooks.flatMap(({ name, lastError, nextTryAt }) =>
              lastError === null
                ? []
                : [`${bad(name)}  ${lastError}${nextTryAt === null ? '' : `; next try at ${nextTryAt}`}`],
            ),
          ].join('\n'),
    );
  });

  verb('test', 'post an event of the type webhook.test, once, and say what came of it')
    .argument('<name>')
    .action(async (name: string, options: StateOptions) => {
      await using gateway = await host.openGateway(options);
      const trial = await gateway['webhook.test']({ name });
      print(trial, options, ({ status, ms, error }) =>
        error === null ? `${good('taken')}: status ${status} after ${ms} ms` : `${bad('not taken')}: ${error}`,
      );
      if (trial.error !== null) process.exitCode = REFUSED_STATUS;
    });

  verb('dead', 'events that were put aside, after too many tries or too long a time; newest first')
    .argument('[name]', 'only of this webhook')
    .option('--limit <n>', 'the newest so many, 1000 at most', '100')
    .action(async (name: string | undefined, options: StateOptions & { limit: string }) => {
      await using gateway = await host.openGateway(options);
      const limit = Number(options.limit);
      print(await gateway['webhook.dead']({ limit, ...(name === undefined ? {} : { name }) }), options, (letters) =>
        letters.length === 0
          ? 'nothing was put aside'
          : table(
              ['event', 'id', 'webhook', 'happened', 'user', 'tries', 'why'],
              letters.map(({ id, webhook, record, tries, why }) => [
                record?.event ?? '-',
                id,
                webhook,
                record?.at ?? '-',
                record?.user ?? '-',
                String(tries),
                why,
              ]),
            ),
      );
    });

  verb('retry', 'tell again what was put aside, and try now what waits for its next try')
    .argument('[name]', 'only of this webhook')
    .option('--id <id>', 'only the event whose id starts so')
    .action(async (name: string | undefined, options: StateOptions & { id?: string }) => {
      await using gateway = await host.openGateway(options);
      const { id } = options;
      const wanted = { ...(name === undefined ? {} : { name }), ...(id === undefined ? {} : { id }) };
      print(await gateway['webhook.retry'](wanted), options, ({ queued }) => `${queued} events are told again`);
    });

  return command;
}
