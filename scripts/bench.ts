/** `npm run bench`: lays out what users install, and measures that. */

import { join } from 'node:path';
import { layOutBuilt } from './packaging/programs.ts';
import { ROOT } from './suites.ts';

process.env.CUSTOMVPN_BUILT_COMMAND = await layOutBuilt(join(ROOT, '.cache/built'));
await import('../test/bench/main.ts');
