/**
 * The program as a single executable: the command line, or one of the processes that it is made of.
 *
 * What runs has been put into one script (`scripts/packaging/single.ts`); each part is run when it is imported.
 */

import { PART_WORD, type Part } from '../src/os/own-program.ts';

const PARTS: Readonly<Record<Part, () => Promise<unknown>>> = {
  auth: () => import('../src/gateway/auth/main.ts'),
  worker: () => import('../src/gateway/worker/main.ts'),
  'worker-spare': () => import('../src/gateway/worker/spare.ts'),
  hasher: () => import('../src/gateway/auth/hasher-child.ts'),
  hooks: () => import('../src/gateway/auth/hooks-child.ts'),
  confine: () => import('../src/os/confine.ts'),
};

const [word, part = ''] = process.argv.slice(2);
if (word === PART_WORD && Object.hasOwn(PARTS, part)) {
  // A part finds its arguments where a script has them.
  process.argv.splice(2, 2);
  await PARTS[part as Part]();
} else {
  const { main } = await import('./main.ts');
  await main();
}
