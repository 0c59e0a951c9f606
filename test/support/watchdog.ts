/**
 * Loaded before each test file by the test runner: ends a file that outlives its limit, and says what kept it alive.
 *
 * A test that leaks a socket or a timer passes and then never lets its process end; without this the whole run would
 * wait for it.
 */

const limitMs = Number(process.env.CUSTOMVPN_TEST_FILE_LIMIT_MS ?? 0);

if (limitMs > 0) {
  setTimeout(() => {
    const open = process.getActiveResourcesInfo().join(', ') || 'nothing that Node lists';
    process.stderr.write(`${process.argv[1]}: still running after ${limitMs / 1000} s; open: ${open}\n`);
    process.exit(1);
  }, limitMs).unref();
}
