/**
 * The program of a worker that has no place yet: under a name of its own, so that nobody takes it for one that serves. See `main.ts`.
 */

import './main.ts';
