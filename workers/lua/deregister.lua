#!lua flags=allow-oom
-- Lets agents leave: nothing new for them, what they still have goes to others, their data stays for a while.
-- include: base liveness agents
-- keys: agent:{id} hash w | agents:expiry zset w | agents:departed zset w | in:registry stream w
-- keys: in:control:{kind} stream w
-- ARGV[8] the stream (without namespace): in:registry, or in:control:registry for an operator's word
-- ARGV[9] number of agents, then for each: entry id | caller or '' | agent id | incarnation or ''
-- Returns {words}. Words: OK; UNKNOWN; SUPERSEDED (a newer process has the id; it stays); STALE; GONE (its entry
--   was handled before); ERROR <why> (not consumed)
-- Events in log:agents: agent.deregistered
-- Events in in:losses: agent.lost (it left with tasks in flight)
local STREAM = ARGV[8]

-- Ids of two streams within one ms cannot be ordered: an operator's word counts as the later one.
local function may_be_later(entry, than)
  return STREAM ~= 'in:registry' and entry_ms(entry) == entry_ms(than)
end

local function deregister(i)
  local entry, caller, id, incarnation = unpack(ARGV, i, i + 3)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  local mismatch = incarnation_mismatch(agent, incarnation)
  if not agent.known or mismatch == 'UNKNOWN' then
    answer(caller, STREAM, entry, 'agent_not_found', "Agent '" .. id .. "' not found")
    return 'UNKNOWN'
  elseif mismatch then
    answer(caller, STREAM, entry, 'superseded', "a newer process took agent_id '" .. id .. "'")
    return 'SUPERSEDED'
  elseif not is_later(entry, agent.fact_id) and not may_be_later(entry, agent.fact_id) then
    answer(caller, STREAM, entry)
    return 'STALE'
  end
  if agent.status ~= 'inactive' then
    end_term(agent)
    set_status(agent, 'inactive')
    bump_rev(agent)
    call('ZREM', P .. 'agents:expiry', id)
    call('ZADD', P .. 'agents:departed', NOW, id)
    call('HSET', P .. 'agent:' .. id, 'status', 'inactive', 'term', agent.term, 'rev', agent.rev, 'fact_id', entry)
    log_agent('agent.deregistered', agent)
  end
  answer(caller, STREAM, entry)
  return 'OK'
end

local words, done = {}, {}
for i = 10, 9 + tonumber(ARGV[9]) * 4, 4 do
  local word, failed = guarded(deregister, i)
  words[#words + 1] = word
  if not failed then
    done[#done + 1] = ARGV[i]
  end
end
finish()
consume(STREAM, 'registry', done)
return { words }
