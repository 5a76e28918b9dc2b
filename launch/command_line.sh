# shellcheck shell=bash
# Sourced by the launchers: one-line errors, and commands that --dry-run prints instead of running.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "${0##*/}: error: needs bash 4.4 or newer, this is $BASH_VERSION (macOS: brew install bash)" >&2
    exit 1
fi

dry_run=""

die() { # die MESSAGE [STATUS]
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    exit "${2:-1}"
}

say() { printf '%s: %s\n' "${0##*/}" "$1" >&2; }

quoted() { # the words as one line that a shell reads back to the same words
    local word line=() apostrophe="'\\''"
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@,+%-]+$ ]]; then
            line+=("$word")
        else
            line+=("'${word//"'"/"$apostrophe"}'")
        fi
    done
    printf '%s\n' "${line[*]}"
}

execute() { # execute COMMAND…: run it, or print it under --dry-run
    if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

required() { # required OPTION VALUE EXAMPLE: wrong usage unless VALUE is there
    [[ -n $2 ]] || die "missing $1; give it, for example $1 $3" 2
}

number() { # number OPTION VALUE MINIMUM
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
        die "$1 takes a whole number of at least $3, not '$2'" 2
    fi
}

matching() { # matching OPTION VALUE PATTERN WHAT
    [[ $2 =~ ^$3$ ]] || die "$1 '$2' is not $4" 2
}

# A recipe's file and its overrides stand last, so that they look as they do after `jvlmm run`.
overrides_only() { # overrides_only ARGUMENT…
    local argument
    for argument; do
        [[ $argument =~ ^[A-Za-z_][A-Za-z0-9_.]*= || $argument == --debug || $argument == --json ]] ||
            die "'$argument' after CONFIG is no override a.b=c; the launcher's own options stand before CONFIG" 2
    done
}

# The launcher's `flag NAME` says whether it has such an option without a value; `option NAME VALUE` takes all others.
parse() { # parse ARGUMENT…: the launcher's options, then the recipe's file and overrides, into `config` and `overrides`
    while (($#)); do
        case $1 in
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
            --dry-run) dry_run=1 ;;
            --*)
                if ! flag "$1"; then
                    [[ $# -gt 1 ]] || die "$1 is unknown or lacks its value; see launch/${0##*/} --help" 2
                    option "$1" "$2"
                    shift
                fi
                ;;
            *)
                # shellcheck disable=SC2034  # the launcher reads it
                config=$1
                overrides=("${@:2}")
                overrides_only "${overrides[@]}"
                return
                ;;
        esac
        shift
    done
}

print_help() { sed -n '2,/^$/{/^#/!q;s/^# \{0,1\}//;p}' "$0"; }
