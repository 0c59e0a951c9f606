/**
 * The list of what the product is made of (CycloneDX), from the lock file.
 *
 * Hides npm's way of making one. Development packages are not in it; the packages of other platforms are.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { manifest, neededPackages, ROOT, run } from './installed-tree.ts';

interface Bom {
  metadata: { component: { name: string } };
  components: { 'bom-ref': string; name: string; version: string }[];
  dependencies: { ref: string; dependsOn?: string[] }[];
}

/** Writes `customvpn-VERSION.cdx.json`; returns its path. */
export function makeSbom(out: string): string {
  const words = ['sbom', '--package-lock-only', '--sbom-format=cyclonedx', '--sbom-type=application'];
  const bom = JSON.parse(run('npm', words, ROOT)) as Bom;
  // npm's own `--omit=dev` also leaves out what development tools need, too.
  const needed = neededPackages();
  bom.components = bom.components.filter(({ name, version }) => needed.get(name)?.includes(version));
  // Else it is called after the folder of the checkout.
  bom.metadata.component.name = manifest.name;
  const { ref: own } = bom.dependencies[0] ?? { ref: '' };
  const known = new Set([own, ...bom.components.map((component) => component['bom-ref'])]);
  bom.dependencies = bom.dependencies
    .filter(({ ref }) => known.has(ref))
    .map(({ ref, dependsOn = [] }) => ({ ref, dependsOn: dependsOn.filter((other) => known.has(other)) }));
  mkdirSync(out, { recursive: true });
  const file = join(out, `${manifest.name}-${manifest.version}.cdx.json`);
  writeFileSync(file, `${JSON.stringify(bom, undefined, 2)}\n`);
  return file;
}
