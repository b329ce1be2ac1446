# shellcheck shell=bash disable=SC2034,SC2154,SC2164 # what is set, or used, where this is sourced
# common.sh - what run.sh, run_io.sh and run_pool.sh share: they source it first. Each has functions of its own:
#   have PACKAGE         is it there?
#   build PEER           its program
#   run_one PEER NAME    adds to the results; in round $round
# and two lists: peers, to which add_peer adds, and names, of what is measured. $more_usage may name more arguments.
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

quick=
if [[ ${1-} == --quick ]]; then
    quick=1
    shift
fi
rounds=${1:-$((${#quick} ? 1 : 5))}
if ! [[ $rounds =~ ^[1-9][0-9]*$ ]] || (($# > 1)); then
    echo "usage: $0 [--quick] [ROUNDS]${more_usage-}" >&2
    exit 2
fi

out=build/bench
cc=${CC:-cc}

install_packages() {
    local package missing=() sudo=()
    for package in "$@"; do
        have "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || sudo=(sudo -n)
    echo "missing packages: ${missing[*]}"
    if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
        "${sudo[@]}" apt-get update -q || true
        "${sudo[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}" || true
    fi
}

# add_peer NAME PACKAGE...
add_peer() {
    local peer=$1 package
    shift
    for package in "$@"; do
        if ! have "$package"; then
            echo "$peer is left out: install $package"
            return
        fi
    done
    if build "$peer"; then
        peers+=("$peer")
    else
        echo "$peer is left out: it does not build"
    fi
}

# The order changes from round to round: nobody always comes after the same one.
run_in_turn() {
    local round name i
    for ((round = 1; round <= rounds; round++)); do
        echo "round $round of $rounds" >&2
        for name in "${names[@]}"; do
            for ((i = 0; i < ${#peers[@]}; i++)); do
                run_one "${peers[(i + round) % ${#peers[@]}]}" "$name"
            done
        done
    done
}
