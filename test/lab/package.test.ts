/**
 * The packages as those have them who install them: the Debian package through its whole life, and the npm package from its
 * own tarball.
 *
 * The Debian package is installed on a copy of this machine that nobody else sees: an overlay in a mount namespace, with
 * processes and a network of its own. What is left there after a purge is looked at from outside.
 */

import assert from 'node:assert/strict';
import { globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { copyRuntimePackages, manifest, runtimePackages } from '../../scripts/packaging/installed-tree.ts';
import { labOptions } from './deployment.ts';
import { run } from './process.ts';

const ROOT = dirname(dirname(import.meta.dirname));
const NEXT = `${manifest.version}+next`;
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source'];
const MAKE_MS = 300_000;

const make = (...words: string[]) => run([...NODE, join(ROOT, 'scripts/package.ts'), ...words], { timeoutMs: MAKE_MS });

/** Ends each step with its status, whatever became of it. */
const LIFE = `
# The tests’ own cache of compiled code would be a file that is left behind.
unset NODE_COMPILE_CACHE
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
ip link set lo up
step() { name=$1; shift; printf '\\n== %s\\n' "$name"; "$@" 2>&1; printf '\\n-- %s\\n' "$?"; }
answers() { tries=0; until grep -q '^ready$' /tmp/gateway.log; do tries=$((tries+1)); [ $tries -lt 300 ] || { cat /tmp/gateway.log; return 1; }; sleep 0.2; done; }
serve() { customvpn server run >/tmp/gateway.log 2>&1 & }
step install dpkg -i FIRST
step version customvpn --version
step accounts getent passwd customvpn-auth customvpn-worker
step folders stat -c '%a %U %n' /var/lib/customvpn /var/lib/customvpn-client
step manual man -P cat customvpn-server
step completions bash -c 'source /usr/share/bash-completion/completions/customvpn && complete -p customvpn'
step unit systemd-analyze verify /usr/lib/systemd/system/customvpn.service
step no-write find /usr/lib/customvpn /usr/bin/customvpn -not -type l -perm /022
step init customvpn server init --name localhost --listen 127.0.0.1:8443
step user customvpn user add alice
printf '\\n[admin]\\nlisten = "127.0.0.1:8444"\\n' >>/var/lib/customvpn/server.toml
echo 'a secret that both of them have' >/var/lib/customvpn/radius.secret && chmod 600 /var/lib/customvpn/radius.secret
printf '[backends.dial-in]\\nkind = "radius"\\nservers = ["127.0.0.1"]\\nsecretFile = "/var/lib/customvpn/radius.secret"\\n' >>/var/lib/customvpn/server.toml
serve
step start answers
cat >/tmp/page.mjs <<'END'
const place = 'https://localhost:8444';
const html = await (await fetch(place)).text();
for (const [, path] of html.matchAll(/(?:src|href)="([^"]+)"/g)) console.log((await fetch(place + path)).status, path);
END
step page sh -c 'NODE_EXTRA_CA_CERTS=/var/lib/customvpn/certs/ca.pem /usr/lib/customvpn/node_modules/node-*/bin/node /tmp/page.mjs'
step processes ps -eo user:20,args
step profile customvpn profile alice --out /tmp/alice.toml
step probe customvpn client probe 127.0.0.1:8443
step upgrade dpkg -i SECOND
step live customvpn server status
step workers customvpn server replace-workers
step upgraded customvpn --version
step kept customvpn user list
step remove dpkg -r customvpn
step stopped sh -c '! pgrep -f "server [r]un"'
step ended sh -c '! pgrep -a -u customvpn-auth,customvpn-worker'
step links ip -o link
step state ls /var/lib/customvpn/server.toml
step purge dpkg -P customvpn
step gone sh -c 'ls -d /var/lib/customvpn* /usr/lib/customvpn /usr/bin/customvpn; getent passwd customvpn-auth customvpn-worker; getent group customvpn-auth customvpn-worker'
`;

interface Step {
  readonly status: number;
  readonly said: string;
}

/** What dpkg, adduser and the manual's index write of their own. */
const NOT_OURS = [
  /^tmp\//,
  /^var\/lib\/dpkg\//,
  /^var\/log\//,
  /^var\/cache\//,
  /^var\/lib\/systemd\/deb-systemd-helper/,
  /^etc\/(?:passwd|group|shadow|gshadow|subuid|subgid)-?$/,
  /^etc\/\.pwd\.lock$/,
  /^root\/|^run\/|^dev\/|^proc\//,
];

describe('the Debian package', labOptions({ 'dpkg-deb': 'dpkg', unshare: 'util-linux' }), () => {
  let folder: string;
  const steps = new Map<string, Step>();
  let left: string[] = [];
  let removed: string[] = [];

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'customvpn-package-'));
    await make('deb', '--out', folder, '--compression', 'none');
    await make('deb', '--out', folder, '--compression', 'none', '--version', NEXT);
    const debs = globSync('*.deb', { cwd: folder });
    const first = debs.find((name) => !name.includes(NEXT)) ?? '';
    const second = debs.find((name) => name.includes(NEXT)) ?? '';
    const world = join(folder, 'world');
    mkdirSync(world);
    const life = LIFE.replace('FIRST', `/tmp/${first}`).replace('SECOND', `/tmp/${second}`);
    writeFileSync(join(folder, 'life.sh'), life);
    const outside = `set -e
mount -t tmpfs -o size=2g tmpfs ${world}
mkdir ${world}/upper ${world}/work ${world}/root
mount -t overlay overlay -o lowerdir=/,upperdir=${world}/upper,workdir=${world}/work ${world}/root
mount -t proc proc ${world}/root/proc
mount --rbind /dev ${world}/root/dev
mount --rbind /sys ${world}/root/sys
mount -t tmpfs tmpfs ${world}/root/run
mount -t tmpfs tmpfs ${world}/root/tmp
cp ${folder}/*.deb ${folder}/life.sh ${world}/root/tmp/
chroot ${world}/root /bin/sh /tmp/life.sh || true
printf '\\n==== left\\n'; cd ${world}/upper; find . -mindepth 1 -not -type d -not -type c -printf '%P\\n'
printf '\\n==== removed\\n'; find . -mindepth 1 -type c -printf '%P\\n'`;
    const { stdout } = await run(
      [
        'unshare',
        '--mount',
        '--pid',
        '--net',
        '--fork',
        '--kill-child',
        '--propagation',
        'private',
        'sh',
        '-c',
        outside,
      ],
      { timeoutMs: 240_000 },
    );
    const [life_ = '', after_ = '', gone_ = ''] = stdout.split(/^==== \w+$/m);
    for (const [, name = '', said = '', status] of life_.matchAll(/^== (\S+)\n([\s\S]*?)\n-- (\d+)$/gm)) {
      steps.set(name, { status: Number(status), said: said.trim() });
    }
    const files = (text: string): string[] =>
      text.split('\n').filter((file) => file !== '' && !NOT_OURS.some((pattern) => pattern.test(file)));
    left = files(after_);
    removed = files(gone_);
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  const good = (name: string): string => {
    const step = steps.get(name);
    assert.ok(step, `${name} was not reached; ${[...steps.keys()].join(' ')}`);
    assert.equal(step.status, 0, `${name}: ${step.said}`);
    return step.said;
  };

  test('installs, with users, folders, manual, completions and a unit that systemd accepts', () => {
    good('install');
    assert.equal(good('version'), manifest.version);
    assert.match(good('accounts'), /customvpn-auth.*nologin[\s\S]*customvpn-worker.*nologin/);
    assert.match(good('folders'), /^700 root \/var\/lib\/customvpn\n700 root \/var\/lib\/customvpn-client$/);
    assert.match(good('manual'), /customvpn server init/);
    assert.match(good('completions'), /_customvpn customvpn/);
    assert.doesNotMatch(good('unit'), /customvpn\.service/);
    assert.equal(good('no-write'), '', 'nobody but root may write any of it');
  });

  test('makes and starts a gateway, whose processes have their own users, and which answers', () => {
    for (const name of ['init', 'user', 'start', 'profile', 'probe']) good(name);
    const processes = good('processes');
    assert.match(processes, /^customvpn-auth .*auth\/main\.js/m);
    assert.match(processes, /^customvpn-worker .*worker\/main\.js/m);
    assert.match(processes, /^root .*\/usr\/lib\/customvpn\/node_modules\/node-\S+\/bin\/node /m);
  });

  test('serves the admin page, with script and style, from what is installed', () => {
    const said = good('page');
    assert.match(said, /^200 \/assets\/page-[0-9a-f]+\.js$/m);
    assert.match(said, /^200 \/assets\/page-[0-9a-f]+\.css$/m);
  });

  test('is upgraded under a gateway that runs, whose workers are replaced and whose users stay', () => {
    for (const name of ['upgrade', 'live', 'workers']) good(name);
    assert.equal(good('upgraded'), NEXT);
    assert.match(good('kept'), /alice/);
  });

  test('is removed: the gateway ends, the machine is as before, the state is kept', () => {
    good('remove');
    good('stopped');
    good('ended');
    assert.doesNotMatch(good('links'), /cvpn/);
    good('state');
  });

  test('is purged: nothing is left of it, and nothing of the machine is gone', () => {
    good('purge');
    const gone = steps.get('gone');
    const said = ['remove', 'stopped', 'ended', 'purge', 'gone']
      .map((name) => `${name} (${steps.get(name)?.status}): ${steps.get(name)?.said}`)
      .join('\n');
    assert.ok(gone !== undefined && gone.status !== 0, said);
    assert.doesNotMatch(gone.said.replaceAll(/^ls: .*$/gm, ''), /customvpn/, said);
    assert.deepEqual(left, [], `left: ${left.join(' ')}\n${said}`);
    assert.deepEqual(removed, [], `removed: ${removed.join(' ')}\n${said}`);
  });
});

describe('the npm package', () => {
  let folder: string;
  let tarball: string;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'customvpn-npm-'));
    tarball = (await make('npm', '--out', folder)).stdout.trim();
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  test('has nothing that publint objects to', async () => {
    const { publint } = await import('publint');
    const { formatMessage } = await import('publint/utils');
    const { messages, pkg } = await publint({ pack: { tarball: readFileSync(tarball).buffer }, strict: true });
    assert.equal(pkg?.name, manifest.name);
    assert.deepEqual(
      messages.map((message) => formatMessage(message, pkg ?? {})),
      [],
    );
  });

  test('is installed by npm from its tarball, and works there by its own Node', { timeout: 240_000 }, async () => {
    const consumer = join(folder, 'consumer');
    mkdirSync(consumer);
    // What a registry would give: nothing is fetched.
    copyRuntimePackages(consumer);
    writeFileSync(join(consumer, 'package.json'), JSON.stringify({ name: 'consumer', private: true, type: 'module' }));
    await run(
      ['npm', 'install', '--prefix', consumer, '--offline', '--ignore-scripts', '--no-audit', '--no-fund', tarball],
      { timeoutMs: 200_000 },
    );
    const command = join(consumer, 'node_modules/.bin/customvpn');
    const { stdout } = await run([command, '--version']);
    assert.equal(stdout.trim(), manifest.version);
    writeFileSync(join(consumer, 'use.mjs'), "import { VpnServer } from 'customvpn'; console.log(typeof VpnServer);\n");
    assert.equal((await run([process.execPath, join(consumer, 'use.mjs')])).stdout.trim(), 'function');
  });
});

describe('the list of parts', () => {
  test('has every package that is needed at run time, with its version, and no tool of development', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'customvpn-sbom-'));
    try {
      const file = (await make('sbom', '--out', folder)).stdout.trim();
      assert.match(basename(file), /^customvpn-.*\.cdx\.json$/);
      const list = JSON.parse(readFileSync(file, 'utf8')) as {
        bomFormat: string;
        metadata: { component: { name: string; version: string } };
        components: { group?: string; name: string; version: string; purl: string }[];
      };
      assert.equal(list.bomFormat, 'CycloneDX');
      assert.equal(list.metadata.component.version, manifest.version);
      const purls = new Set(list.components.map(({ purl }) => decodeURIComponent(purl)));
      for (const path of runtimePackages()) {
        const { name, version } = JSON.parse(readFileSync(join(ROOT, path, 'package.json'), 'utf8')) as {
          name: string;
          version: string;
        };
        assert.ok(purls.has(`pkg:npm/${name}@${version}`), `${name}@${version} is missing`);
      }
      for (const tool of ['typescript', '@biomejs/biome', 'knip', 'publint']) {
        assert.ok(![...purls].some((purl) => purl.startsWith(`pkg:npm/${tool}@`)), tool);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
