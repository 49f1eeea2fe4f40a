# What .ci/run and tools/test-all have in common; bash sources it in the project's folder.
# A leg is one check. One that fails does not stop the others; the table at the end tells.
# Environments and logs are kept in .venvs/, so that a second run is quicker.

MAIN_PYTHON=3.13 # for the legs that run on one Python only

logs=.venvs/logs
mkdir -p "$logs"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
export GREENBACK_WERROR=1

declare -a table=() missing=()
declare -A python=() # interpreters by version
passed=0 failed=0

loudly() { printf '\n!!!!!!!! %s\n\n' "$*"; }

# install_missing COMMAND PACKAGE ...: what of the commands is not here, by apt
install_missing() {
  local packages=
  while [ $# -gt 0 ]; do
    command -v "$1" > /dev/null || packages="$packages $2"
    shift 2
  done
  [ -n "$packages" ] || return 0
  echo "installing$packages"
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $packages
}

# prepare VERSION...: see to compilers, and which of the Pythons are to be had
prepare() {
  local version path
  install_missing gcc gcc g++ g++ make make nm binutils || loudly "apt-get failed; going on"
  [ -e /usr/include/stdio.h ] || { apt-get -qq update; apt-get -qq -y --no-install-recommends install libc6-dev; }
  for version; do
    [ -z "${python[$version]:-}" ] || continue
    if path=$(tools/find-python "$version"); then
      python[$version]=$path
      echo "Python $version: $("$path" --version 2>&1)"
    else
      missing+=("$version")
      loudly "Python $version IS NOT TO BE HAD HERE: greenback is NOT tested on it"
    fi
  done
  main=${python[$MAIN_PYTHON]:-}
  if [ -z "$main" ]; then
    for version; do main=${python[$version]:-$main}; done
    [ -n "$main" ] || { loudly "no Python at all"; exit 1; }
    loudly "no Python $MAIN_PYTHON; the legs for one Python run on $main"
  fi
}

# leg NAME COMMAND...: run it, keep its log, note how it went
leg() {
  local name=$1 log="$logs/${1// /-}.log" start=$SECONDS result closing
  shift
  printf '\n======== leg: %s\n' "$name"
  if "$@" < /dev/null 2>&1 | tee "$log"; then
    result=ok passed=$((passed + 1))
  else
    result=FAILED failed=$((failed + 1))
  fi
  # what pytest and gcovr said last
  closing=$(grep -aE '^=*\s*([0-9]+ failed, )?[0-9]+ passed.* in |^TOTAL ' "$log" | tail -n 2 | paste -sd ' ' | tr -s '= -')
  table+=("$(printf '%-26s %-7s %4ds  %s' "$name" "$result" $((SECONDS - start)) "$closing")")
}

# The next ones do nothing for a version that is not to be had.

# on VERSION ENGINE NAME TARGET ARGUMENT...: a leg that is one of make's targets; ENGINE '' is the default one
on() {
  local version=$1 engine=$2 name=$3
  shift 3
  [ -n "${python[$version]:-}" ] || return 0
  leg "$name $version${engine:+ $engine}" env GREENBACK_ENGINE="$engine" \
    make PYTHON="${python[$version]}" VENV=".venvs/$version" "$@"
}

lint() { leg lint make --keep-going lint PYTHON="$main" VENV=.venvs/lint; }

# tests VERSION ENGINE [FILE...]
tests() {
  local groups="test typing"
  [ "$1" = "${1%t}" ] || groups=${FREE_THREADED_GROUPS:-test} # no mypy for free-threaded builds
  on "$1" "$2" tests test TEST_GROUPS="$groups" PYTEST_ARGS="-q -rfE -n 2 ${*:3}"
}

# torture VERSION ENGINE SECONDS
torture() {
  local overlaps=
  [ "$2" != direct ] || overlaps="--require-overlaps 100"
  on "$1" "$2" torture torture TORTURE_ARGS="--seconds $3 $overlaps"
}

# suites VERSION ENGINE [SUITE...]
suites() { on "$1" "$2" suites suites SUITES_ARGS="${*:3}"; }

# on_main [HOST...]: the legs that run on one Python only
on_main() {
  # The first two are about the C code; prompts, kernels, types and pages are Python, and slow there.
  local of_c="-q -rfE -n 2" file
  for file in debugger docs examples ipython repl typing; do of_c="$of_c --ignore tests/test_$file.py"; done
  leg sanitize make sanitize PYTHON="$main" PYTEST_ARGS="$of_c"
  leg coverage make coverage PYTHON="$main" PYTEST_ARGS="$of_c"
  leg hosts make hosts PYTHON="$main" VENV=.venvs/demo HOSTS_ARGS="$*"
  leg docs make docs PYTHON="$main"
  leg package make package PYTHON="$main"
  leg demo make demo PYTHON="$main" VENV=.venvs/demo
}

# Print the table; whether all legs passed.
summary() {
  local version
  printf '\n======== summary\n'
  printf '%s\n' "${table[@]}"
  for version in ${missing[@]+"${missing[@]}"}; do
    loudly "Python $version was not to be had: NOT TESTED"
  done
  echo "legs: $passed passed, $failed failed"
  [ $failed = 0 ]
}
