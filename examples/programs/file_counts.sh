#!/bin/sh
# Counts the lines, words and bytes of a file. An ordinary program that becomes an agent with:
#
#     coord agent --capability file_counts -- examples/programs/file_counts.sh {path}
#     coord tasks submit file_counts '{"path": "/etc/services"}' --wait
set -eu
path=$1

progress() { # coord opens a pipe for progress; without coord there is none
    [ -z "${COORD_PROGRESS_FD:-}" ] || echo "$1" >&3
}

[ -e "$path" ] || { echo "file $path does not exist" >&2; exit 66; }       # permanent failure
[ -r "$path" ] || { echo "cannot read $path here" >&2; exit 75; }          # another machine may succeed
progress "counting $path"
counts=$(wc -lwc <"$path")
# shellcheck disable=SC2086 -- three numbers, three words
printf '{"lines": %d, "words": %d, "bytes": %d}\n' $counts
