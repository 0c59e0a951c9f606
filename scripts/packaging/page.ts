/**
 * Makes the admin page for a published package, which has no tool to make it: `dist/src/web/page.json`.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { makePage } from '../../src/gateway/admin/files.ts';

const folder = join(dirname(dirname(import.meta.dirname)), 'dist/src/web');
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'page.json'), JSON.stringify(await makePage()));
