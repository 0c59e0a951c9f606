/** Policies of any length, for the bench: rules for a hundred groups, each of which has as many, and some for all. */

export const GROUPS = 100;

/** The text of a policy with so many rules. @param last rules at its end, as text */
export function benchPolicy(rules: number, last = ''): string {
  const lines = ['version = 1'];
  for (let at = 0; at < rules; at++) {
    const [a, b] = [(at >> 8) & 255, at & 255];
    const to = at % 10 === 0 ? `"fd00:${at.toString(16)}::/48"` : `"10.${a}.${b}.0/24"`;
    lines.push(
      '[[rules]]',
      `action = "${at % 17 === 16 ? 'deny' : 'allow'}"`,
      `from = ["${at % 50 === 49 ? 'any' : `group:g${at % GROUPS}`}"]`,
      `to = [${to}]`,
      `services = ["tcp/${at % 3 === 0 ? '443' : '8000-8100'}", "udp/53"]`,
    );
  }
  return `${lines.join('\n')}\n${last}`;
}
