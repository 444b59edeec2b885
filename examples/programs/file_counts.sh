#!/bin/sh
# Counts the lines, words and bytes of a file, as an agent that knows nothing of coord:
#
#     coord agent --capability file_counts -- examples/programs/file_counts.sh {path}
#     coord tasks submit file_counts '{"path": "/etc/services"}' --wait
set -eu
path=$1

progress() { # by the pipe that coord gives it; by hand there is none
    [ -z "${COORD_PROGRESS_FD:-}" ] || echo "$1" >&3
}

[ -e "$path" ] || { echo "there is no file $path" >&2; exit 66; }          # no other try helps
[ -r "$path" ] || { echo "may not read $path here" >&2; exit 75; }         # another machine may
progress "counting $path"
counts=$(wc -lwc <"$path")
# shellcheck disable=SC2086 -- three numbers are meant to be three words
printf '{"lines": %d, "words": %d, "bytes": %d}\n' $counts
