/**
 * The kill switch: while it is closed, nothing of the user's leaves the machine outside the tunnel.
 *
 * Hides the packet filter's table. The kernel has it, not this process: it stays closed when the client crashes, is killed
 * or ends with an error, and only `open` opens it. It is in no journal, because what takes changes back after a crash must
 * not open it. One profile has one table; closing it again replaces it in one transaction.
 */

import type { Logger } from '../base/log.ts';
import type { Prefix } from '../ip/address.ts';
import { deleteTable, replaceTable, runNft, type TableName, tableExists } from '../os/nft.ts';
import { OWN_MARK } from './host-plan.ts';
import { killSwitchRules, PORTAL_PORTS, PORTAL_SET } from './kill-switch-rules.ts';

const TABLE_PREFIX = 'customvpn_closed_';

export class KillSwitch {
  readonly #table: TableName;
  readonly #log: Logger;
  #rules = '';
  /** What is done is done one after the other. */
  #last: Promise<unknown> = Promise.resolve();

  /** @param profileId the profile's, 32 hexadecimal digits */
  constructor(profileId: string, log: Logger) {
    this.#table = { family: 'inet', name: `${TABLE_PREFIX}${profileId.slice(0, 16)}` };
    this.#log = log.child({ component: 'kill-switch' });
  }

  /** Closes it, or changes what stays open; nothing if that is so already. @throws {VpnError} as `replaceTable` */
  close(open: readonly Prefix[]): Promise<void> {
    const rules = killSwitchRules({ mark: OWN_MARK, open });
    return this.#enqueue(async () => {
      if (rules === this.#rules && (await this.isClosed())) return;
      await replaceTable(this.#table, rules);
      if (this.#rules === '') this.#log.info('closed: nothing leaves this machine outside the tunnel');
      this.#rules = rules;
    });
  }

  /** Closes it again where another program has removed it, such as a packet filter that begins by flushing all tables. */
  keepClosed(): Promise<void> {
    return this.#enqueue(async () => {
      if (this.#rules === '' || (await this.isClosed())) return;
      await replaceTable(this.#table, this.#rules);
      this.#log.warn(
        'closed again: another program had removed it, and for some seconds nothing has stopped what leaves',
      );
    });
  }

  /** Idempotent. @throws {VpnError} as `replaceTable` */
  open(): Promise<void> {
    return this.#enqueue(async () => {
      this.#rules = '';
      if (!(await this.isClosed())) return;
      await deleteTable(this.#table);
      this.#log.info('open');
    });
  }

  /** As the kernel has it, whoever closed it. @throws {VpnError} as `replaceTable` */
  async isClosed(): Promise<boolean> {
    return await tableExists(this.#table);
  }

  /** Lets out, for so long, what a captive portal needs; the kernel ends it, whatever becomes of this process. */
  async openPortal(milliseconds: number): Promise<void> {
    const elements = PORTAL_PORTS.map((port) => `${port} timeout ${Math.ceil(milliseconds / 1000)}s`).join(', ');
    await runNft(
      `flush set ${this.#table.family} ${this.#table.name} ${PORTAL_SET}\n` +
        `add element ${this.#table.family} ${this.#table.name} ${PORTAL_SET} { ${elements} }\n`,
    );
    this.#log.warn(
      'OPEN for a captive portal: every program on this machine reaches names and web pages outside the tunnel',
      {
        seconds: Math.ceil(milliseconds / 1000),
      },
    );
  }

  /** Ends that before its time. */
  async closePortal(): Promise<void> {
    await runNft(`flush set ${this.#table.family} ${this.#table.name} ${PORTAL_SET}\n`);
  }

  #enqueue(action: () => Promise<void>): Promise<void> {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {});
    return result;
  }
}
