/** Our command line as tests and benches run it: of the source, or as it is where it is installed (scripts/packaging/programs.ts). */

import { join } from 'node:path';

export const COMMAND = process.env.CUSTOMVPN_BUILT_COMMAND ?? join(import.meta.dirname, '../../bin/customvpn');
