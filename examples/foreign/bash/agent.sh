#!/usr/bin/env bash
# An agent in bash, written from docs/protocol.md with redis-cli (or valkey-cli) and jq: `agent.sh ID`.
#
# Its capability is `digest`: wait until the file {"path": …} exists, as in a folder where other programs drop files
# (they rename complete files into it), and return {"sha256": …, "bytes": …}. COORD_REDIS_URL is the URL of Redis.
#
# It answers each message with its payload; of the message {"ask": AGENT, "protocol": …} it first requests the answer from
# that agent. It accepts every link, and takes the agent in COORD_MASTER as its master.
#
# It runs one task at a time. It declares no incarnation, so it need not list its leases, and an attempt may take an hour
# if the task has no timeout. It keeps no cursor: it deletes the entries that it has handled, and the entries in its lanes
# wait until there is room.
set -uo pipefail

id=$1
url=${COORD_REDIS_URL:-redis://127.0.0.1:6379}
prefix="{${COORD_NAMESPACE:-coord}}:"
interval=${COORD_HEARTBEAT_INTERVAL_S:-5}
answer=${COORD_ANSWER_TIMEOUT_S:-10}
grace=30
lanes=("${prefix}inbox:$id:critical" "${prefix}inbox:$id:high" "${prefix}inbox:$id:normal" "${prefix}inbox:$id:low")
token=(${COORD_AGENT_TOKEN:+token "$COORD_AGENT_TOKEN"}) # goes with each fact about this agent; empty without one
caller="$id.$$.$RANDOM" # so all answers there are for this process
replies="${prefix}replies:$caller"
last_answer=0-0 # id of the last answer that was read
job='' job_lease='' job_task=''
draining='' status_entry='' left_entry='' has_left=''
master=''       # to be set when the registry has answered
declare -A asked # id of an own request -> id, sender and traceparent of the message that it is for
link=new       # later: up, or down
give_up_at=''  # time limit of the shutdown, in seconds since the start of this shell

cli=$(command -v redis-cli || command -v valkey-cli) || { echo "redis-cli or valkey-cli is required" >&2; exit 1; }
case $url in
    unix://*) path=${url#unix://} server=(-s "$(printf '%b' "${path//%/\\x}")") ;; # %20 is a space
    *) server=(-u "$url") ;;
esac

# Runs one command; fails on an error or without an answer. (redis-cli repeats a command once if its connection breaks.)
redis() { timeout "$((${answer%.*} + 1))" "$cli" "${server[@]}" -e "$@" 2>/dev/null; }

now_ms() { echo "$((${EPOCHREALTIME/[.,]/} / 1000))"; }

# Appends a fact, with retries until Redis answers (a repeated fact changes nothing); prints its entry id.
append() { # stream type fact [caller NAME]
    until redis XADD "$prefix$1" '*' type "$2" data "$3" "${@:4}"; do
        sleep 0.5
        [[ $give_up_at ]] && ((SECONDS > give_up_at)) && return 1
        kill -0 $$ || return 1 # this is the work of an agent that is gone
    done
}

register() {
    [[ $has_left ]] && return 0 # it would bring the agent back
    master=${COORD_MASTER:-}
    append in:registry agent.registered "$(jq -cn --arg id "$id" --argjson interval "$interval" '{
        agent_id: $id, agent_type: "worker", capabilities: ["digest"], tags: ["foreign"],
        capacity: 1, heartbeat_interval: $interval}')" caller "$caller" "${token[@]}" >/dev/null
}

# Sends a heartbeat; one may get lost, so it is not repeated. It has no `leases`, so the agent is not asked to list them.
send_heartbeat() {
    redis XADD "${prefix}in:beats" MAXLEN '~' 100000 '*' type agent.heartbeat data "{\"agent_id\":\"$id\"}" \
        caller "$caller" "${token[@]}" >/dev/null
}

report() { # type task lease [fields as JSON]
    append in:reports "$1" "$(jq -cn --arg task "$2" --arg lease "$3" --argjson more "${4:-"{}"}" \
        '{task_id: $task, lease: $lease} + $more')" >/dev/null
}

give_back() { # task lease reason; the report also deletes the entry from the lane
    report task.released "$1" "$2" "$(jq -cn --arg reason "${3:0:2000}" '{reason: $reason}')"
}

# The work: waits for a file, computes its digest, and reports the outcome.
digest() { # task lease path
    local started sum size
    started=$(now_ms)
    report task.started "$1" "$2"
    until [[ ! $3 || -e $3 ]]; do
        kill -0 $$ || return # the agent is gone, so its lease is lost
        sleep 0.05
    done
    if sum=$(sha256sum <"$3") && size=$(stat -Lc %s -- "$3"); then
        report task.completed "$1" "$2" "$(jq -cn --arg sum "${sum%% *}" --argjson size "$size" \
            --argjson ago "$(($(now_ms) - started))" '{result: {sha256: $sum, bytes: $size}, started_ms_ago: $ago}')"
    else
        report task.failed "$1" "$2" "$(jq -cn --arg path "$3" \
            '{code: "unreadable", message: ("cannot be read: " + $path), retryable: false}')"
    fi
} 2>/dev/null

# Claims a task by deleting its entry, and starts it.
assigned() { # lane entry task lease data
    [[ $4 == "$job_lease" ]] && return # it was claimed before a fail-over
    if [[ $draining ]]; then
        give_back "$3" "$4" 'the agent is draining'
    elif [[ ! $job ]]; then
        if [[ $(redis XDEL "$1" "$2") == 1 ]]; then
            job_task=$3 job_lease=$4
            set -m # in its own process group, so that all of it can be stopped
            digest "$3" "$4" "$(jq -r '.payload.path // ""' <<<"$5")" </dev/null &
            job=$!
            set +m
        else # the coordinator was faster, or the answer was lost
            give_back "$3" "$4" 'claim in doubt'
        fi
    fi
}

stop() { # lease reason
    if [[ $job && $1 == "$job_lease" ]]; then
        kill -- "-$job" 2>/dev/null
        wait "$job" 2>/dev/null
        give_back "$job_task" "$job_lease" "$2" # changes nothing if the outcome was already reported
        job='' job_lease=''
    fi
}

answered() { # stream facts code message
    if [[ $1:$3 == in:registry: && $master ]]; then # the registry knows it now
        append in:links master.set "$(jq -cn --arg me "$id" --arg master "$master" '{agent_id: $me, master_id: $master}')" \
            "${token[@]}" >/dev/null
        master=''
    fi
    if [[ $1 == in:registry ]]; then # an entry id is unique in its stream only
        [[ " $2 " == *" $status_entry "* ]] && status_entry=''
        [[ " $2 " == *" $left_entry "* ]] && left_entry=''
    fi
    case $3 in
        '' | agent_not_found) ;; # agent_not_found: it has left already
        unknown_agent) register ;;
        *) echo "$id: $3: $4" >&2; kill -- "-$job" 2>/dev/null; exit 1 ;;
    esac
}

# Sends the reply to a message.
reply() { # message sender trace payload failed
    append in:messages:normal message.sent "$(jq -cn --arg id "$1" --arg me "$id" --arg to "$2" --arg trace "$3" \
        --argjson payload "$4" --arg failed "${5:-}" '{message_id: ($id[:122] + ".reply"), sender_id: $me, receiver_id: $to,
        reply_to: $id, payload: $payload, failed: ($failed == "1")}
        + if $trace == "" then {} else {traceparent: $trace} end')" "${token[@]}" >/dev/null
}

# Answers a message with its own payload (a ping also with the id), or with what another agent replies to a request.
# Answers and broadcasts are not answered.
answer_message() { # message sender type protocol reply_to trace data failed
    local question sender trace
    if [[ $5 && ${asked[$5]:-} ]]; then
        IFS=' ' read -r question sender trace <<<"${asked[$5]}"
        reply "$question" "$sender" "$trace" "$7" "$8"
        unset "asked[$5]"
    elif [[ $5 || $4 == broadcast ]]; then
        return
    elif jq -e 'type == "object" and has("ask")' <<<"$7" >/dev/null; then
        asked[${1:0:122}.ask]="$1 $2 $6"
        append in:messages:normal message.sent "$(jq -c --arg id "$1" --arg me "$id" --arg trace "$6" '{
            message_id: ($id[:122] + ".ask"), sender_id: $me, receiver_id: .ask, protocol, reply_by: 10, caused_by: $id,
            payload: {from: $me}} + if $trace == "" then {} else {traceparent: $trace} end' <<<"$7")" "${token[@]}" >/dev/null
    else
        reply "$1" "$2" "$6" "$(jq -c --arg me "$id" --arg type "$3" \
            'if $type == "heartbeat" then . + {agent_id: $me} else . end' <<<"$7")"
    fi
}

# Reads and handles lanes and answers, highest lane first: one line per entry, with the fields separated by a character
# that JSON never contains.
read_entries() {
    local entries stream entry type task lease order reason sender message expires reply_to protocol trace fact code text
    local answering change other failed data
    local waits=''
    entries=$(redis --json XREAD COUNT 64 BLOCK 500 STREAMS "${lanes[@]}" "$replies" 0 0 0 0 "$last_answer") || return 1
    while IFS=$'\x1f' read -r stream entry type task lease order reason sender message expires reply_to protocol trace \
        fact code text answering change other failed data; do
        case $stream:${lease:+lease}:$order in
            "$replies":*) last_answer=$entry; answered "$answering" "$fact" "$code" "$text" ;;
            *:lease:) assigned "$stream" "$entry" "$task" "$lease" "$data"; waits=1 ;;
            *)
                [[ $order == stop_task ]] && stop "$lease" "$reason"
                # A message that has expired is left to the router, which records that.
                [[ $message && $(redis TIME | head -n 1)000 -ge $expires ]] && { waits=1; continue; }
                [[ $message ]] &&
                    answer_message "$message" "$sender" "$type" "$protocol" "$reply_to" "$trace" "$data" "$failed"
                [[ $order:$change == link_changed:requested ]] &&
                    append in:links link.accepted "$(jq -cn --arg me "$id" --arg other "$other" \
                        '{agent_id: $me, peer_id: $other}')" "${token[@]}" >/dev/null
                redis XDEL "$stream" "$entry" >/dev/null
                ;;
        esac
    done < <(jq -r --args '. // {} | . as $all | $ARGS.positional[] as $stream | $all[$stream] // [] | .[]
        | .[0] as $entry | .[1] as $flat
        | ([range(0; $flat | length; 2) | {key: $flat[.], value: $flat[. + 1]}] | from_entries)
        | [$stream, $entry, .message_type, .task_id, .lease, .order, .reason, .sender_id, .id, .expires_at, .reply_to,
           .protocol, .traceparent, .fact, .code, .message, .stream, .change, .agent_id, .failed, (.data // "null" | fromjson | tojson)]
        | map(. // "" | gsub("[\u0001-\u001f]"; " ")) | join("\u001f")' "${lanes[@]}" "$replies" <<<"$entries")
    [[ $waits ]] && sleep 0.1 # while entries wait, XREAD does not block
    return 0
}

drain() {
    local until_s=$((SECONDS + grace))
    give_up_at=$((until_s + 10))
    status_entry=$(append in:registry agent.status_changed "{\"agent_id\":\"$id\",\"status\":\"draining\"}" caller "$caller" "${token[@]}")
    # Tasks that were assigned before the answer are returned meanwhile.
    while [[ $status_entry || $job ]] && ((SECONDS < until_s)); do turn; done
    stop "$job_lease" 'the agent is shutting down'
    has_left=1
    left_entry=$(append in:registry agent.deregistered "{\"agent_id\":\"$id\"}" caller "$caller" "${token[@]}")
    while [[ $left_entry ]] && ((SECONDS < give_up_at)); do turn; done
    exit 0
}

# One turn of the loop: reads entries, sends a heartbeat when it is due, and checks whether the work has ended.
last_heartbeat_ms=0
interval_ms=$(jq -n "$interval * 1000 | floor")
turn() {
    if ! read_entries; then
        [[ $link == down ]] || echo "$id: Redis is unavailable: $url" >&2
        link=down
        sleep 0.2
    elif [[ $link != up ]]; then # after each connect it registers, and reads from the beginning
        # The tasks of an earlier process are unknown to this one: deregister, so that they are reassigned.
        [[ $link == new ]] && append in:registry agent.deregistered "{\"agent_id\":\"$id\"}" "${token[@]}" >/dev/null
        link=up
        last_answer=0-0
        register
    fi
    if [[ ! $has_left ]] && (($(now_ms) - last_heartbeat_ms >= interval_ms)); then
        last_heartbeat_ms=$(now_ms)
        send_heartbeat
    fi
    if [[ $job ]] && ! kill -0 "$job" 2>/dev/null; then
        job='' job_lease=''
    fi
}

trap 'draining=1' TERM INT
until [[ $draining ]]; do turn; done
drain
