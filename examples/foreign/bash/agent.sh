#!/usr/bin/env bash
# An agent of coord in bash, with redis-cli (or valkey-cli), jq and docs/protocol.md: `agent.sh ID`.
#
# It can `digest`: wait until the file {"path": …} is there, as in a folder where others drop files (rename them into
# it when they are whole), and answer {"sha256": …, "bytes": …}. COORD_REDIS_URL says where Redis is.
#
# It works on one task at a time. It declares no incarnation: so it need not list its leases, and one attempt may take
# an hour unless the task says otherwise. It keeps no cursor either: whatever it has handled it has deleted, and what is
# still in its lanes waits until there is room.
set -uo pipefail

id=$1
url=${COORD_REDIS_URL:-redis://127.0.0.1:6379}
prefix="{${COORD_NAMESPACE:-coord}}:"
interval=${COORD_HEARTBEAT_INTERVAL_S:-5}
answer=${COORD_ANSWER_TIMEOUT_S:-10}
grace=30
lanes=("${prefix}inbox:$id:critical" "${prefix}inbox:$id:high" "${prefix}inbox:$id:normal" "${prefix}inbox:$id:low")
caller="$id.$$.$RANDOM" # so whatever is answered there is for this process
replies="${prefix}replies:$caller"
heard=0-0      # the last answer that was read
job='' job_lease='' job_task=''
draining='' status_entry='' left_entry=''
link=new       # later: up, or away
give_up_at=''  # in seconds of this shell's life, once it is leaving

cli=$(command -v redis-cli || command -v valkey-cli) || { echo "neither redis-cli nor valkey-cli is here" >&2; exit 1; }
case $url in
    unix://*) path=${url#unix://} server=(-s "$(printf '%b' "${path//%/\\x}")") ;; # %20 is a space
    *) server=(-u "$url") ;;
esac

# One command; fails when there is no answer, or an error. (redis-cli repeats a command once if its connection breaks.)
redis() { timeout "$((${answer%.*} + 1))" "$cli" "${server[@]}" -e "$@" 2>/dev/null; }

now_ms() { echo "$((${EPOCHREALTIME/[.,]/} / 1000))"; }

# Appends a fact, again and again until Redis has answered: twice does no harm. Prints its entry id.
tell() { # stream type fact [caller NAME]
    until redis XADD "$prefix$1" '*' type "$2" data "$3" "${@:4}"; do
        sleep 0.5
        [[ $give_up_at ]] && ((SECONDS > give_up_at)) && return 1
        kill -0 $$ || return 1 # said by the work of an agent that is gone
    done
}

register() {
    tell in:registry agent.registered "$(jq -cn --arg id "$id" --argjson interval "$interval" '{
        agent_id: $id, agent_type: "worker", capabilities: ["digest"], tags: ["foreign"],
        capacity: 1, heartbeat_interval: $interval}')" caller "$caller" >/dev/null
}

# It lives; a beat may get lost, so it is not repeated. No `leases` in it: it would be asked to list them.
beat() {
    redis XADD "${prefix}in:beats" MAXLEN '~' 100000 '*' type agent.heartbeat data "{\"agent_id\":\"$id\"}" \
        caller "$caller" >/dev/null
}

report() { # type task lease [fields as JSON]
    tell in:reports "$1" "$(jq -cn --arg task "$2" --arg lease "$3" --argjson more "${4:-"{}"}" \
        '{task_id: $task, lease: $lease} + $more')" >/dev/null
}

give_back() { # task lease reason; the report takes the entry out of the lane too
    report task.released "$1" "$2" "$(jq -cn --arg reason "${3:0:2000}" '{reason: $reason}')"
}

# The work: waits for a file, takes its fingerprint, and tells the outcome.
digest() { # task lease path
    local begun sum size
    begun=$(now_ms)
    report task.started "$1" "$2"
    until [[ ! $3 || -e $3 ]]; do
        kill -0 $$ || return # the agent is gone, and with it the lease
        sleep 0.05
    done
    if sum=$(sha256sum <"$3") && size=$(stat -Lc %s -- "$3"); then
        report task.completed "$1" "$2" "$(jq -cn --arg sum "${sum%% *}" --argjson size "$size" \
            --argjson ago "$(($(now_ms) - begun))" '{result: {sha256: $sum, bytes: $size}, started_ms_ago: $ago}')"
    else
        report task.failed "$1" "$2" "$(jq -cn --arg path "$3" \
            '{code: "unreadable", message: ("cannot be read: " + $path), retryable: false}')"
    fi
} 2>/dev/null

# Claims a task by deleting its entry, and begins with it.
assigned() { # lane entry task lease data
    [[ $4 == "$job_lease" ]] && return # it was claimed before a fail-over
    if [[ $draining ]]; then
        give_back "$3" "$4" 'the agent is draining'
    elif [[ ! $job ]]; then
        if [[ $(redis XDEL "$1" "$2") == 1 ]]; then
            job_task=$3 job_lease=$4
            set -m # in a process group of its own, so that all of it can be ended
            digest "$3" "$4" "$(jq -r '.payload.path // ""' <<<"$5")" </dev/null &
            job=$!
            set +m
        else # someone was quicker, or the answer got lost: nobody can tell
            give_back "$3" "$4" 'claim in doubt'
        fi
    fi
}

stop() { # lease reason
    if [[ $job && $1 == "$job_lease" ]]; then
        kill -- "-$job" 2>/dev/null
        wait "$job" 2>/dev/null
        give_back "$job_task" "$job_lease" "$2" # had it told its outcome already, this changes nothing
        job='' job_lease=''
    fi
}

answered() { # facts code message
    [[ " $1 " == *" $status_entry "* ]] && status_entry=''
    [[ " $1 " == *" $left_entry "* ]] && left_entry=''
    case $2 in
        '' | agent_not_found) ;; # the latter: it has left already
        unknown_agent) register ;;
        *) echo "$id: $2: $3" >&2; kill -- "-$job" 2>/dev/null; exit 1 ;;
    esac
}

# Reads lanes and answers and does what they say: one line for each entry, its fields apart by a character that JSON
# never holds, highest lane first.
listen() {
    local entries stream entry type task lease order reason sender message expires reply_to fact code said data waits=''
    entries=$(redis --json XREAD COUNT 64 BLOCK 500 STREAMS "${lanes[@]}" "$replies" 0 0 0 0 "$heard") || return 1
    while IFS=$'\x1f' read -r stream entry type task lease order reason sender message expires reply_to fact code said data; do
        case $stream:$type:$order in
            "$replies":*) heard=$entry; answered "$fact" "$code" "$said" ;;
            *:task_assignment:*) assigned "$stream" "$entry" "$task" "$lease" "$data"; waits=1 ;;
            *)
                [[ $order == stop_task ]] && stop "$lease" "$reason"
                # A message: its payload is sent back, unless that is what it is, or it is too late.
                [[ $type == direct && ! $reply_to && $(redis TIME | head -n 1)000 -lt $expires ]] &&
                    tell in:messages:normal message.sent "$(jq -cn --arg id "$message" --arg me "$id" --arg to "$sender" \
                        --argjson payload "$data" '{message_id: ("re." + $id)[:128], sender_id: $me, receiver_id: $to,
                        reply_to: $id, payload: $payload}')" >/dev/null
                redis XDEL "$stream" "$entry" >/dev/null
                ;;
        esac
    done < <(jq -r --args '. // {} | . as $all | $ARGS.positional[] as $stream | $all[$stream] // [] | .[]
        | .[0] as $entry | .[1] as $flat
        | ([range(0; $flat | length; 2) | {key: $flat[.], value: $flat[. + 1]}] | from_entries)
        | [$stream, $entry, .message_type, .task_id, .lease, .order, .reason, .sender_id, .id, .expires_at, .reply_to,
           .fact, .code, .message, (.data // "null" | fromjson | tojson)]
        | map(. // "" | gsub("[\u0001-\u001f]"; " ")) | join("\u001f")' "${lanes[@]}" "$replies" <<<"$entries")
    [[ $waits ]] && sleep 0.1 # what waits is answered at once, every time
    return 0
}

drain() {
    local until_s=$((SECONDS + grace))
    give_up_at=$((until_s + 10))
    status_entry=$(tell in:registry agent.status_changed "{\"agent_id\":\"$id\",\"status\":\"draining\"}" caller "$caller")
    # What was assigned until that was answered is given back in the same breath.
    while [[ $status_entry || $job ]] && ((SECONDS < until_s)); do rest; done
    stop "$job_lease" 'the agent is shutting down'
    left_entry=$(tell in:registry agent.deregistered "{\"agent_id\":\"$id\"}" caller "$caller")
    while [[ $left_entry ]] && ((SECONDS < give_up_at)); do rest; done
    exit 0
}

# One turn: listens, beats when it is time, notices the end of the work.
beaten_ms=0
interval_ms=$(jq -n "$interval * 1000 | floor")
rest() {
    if ! listen; then
        [[ $link == away ]] || echo "$id: Redis is away: $url" >&2
        link=away
        sleep 0.2
    elif [[ $link != up ]]; then # after each connect it says what it is, and reads from the beginning
        # What a process before this one had begun, this one knows nothing of: it is for others.
        [[ $link == new ]] && tell in:registry agent.deregistered "{\"agent_id\":\"$id\"}" >/dev/null
        link=up
        heard=0-0
        register
    fi
    if (($(now_ms) - beaten_ms >= interval_ms)); then
        beaten_ms=$(now_ms)
        beat
    fi
    if [[ $job ]] && ! kill -0 "$job" 2>/dev/null; then
        job='' job_lease=''
    fi
}

trap 'draining=1' TERM INT
until [[ $draining ]]; do rest; done
drain
