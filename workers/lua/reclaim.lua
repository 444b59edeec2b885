#!lua flags=allow-oom
-- Takes back what lost agents had in flight, in the term that ended and in earlier ones.
-- include: base records tasklog tasks ends attempts
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed assigned>cancelled running>cancelled
-- keys: agent:{id} hash r | inflight:{agent} set rw | agents:lost zset w | in:losses stream w
-- ARGV[10] tasks taken back at most for one loss in one call
-- ARGV[11] number of losses, then for each: entry id | agent id | term that ended
-- Returns {words, loads, pools, pools_rev, raised}. Words: OK; WAIT (in:reports holds an entry older than the loss, which may
--   tell of finished work; not consumed); MORE (call again; not consumed); GONE (its entry was handled before);
--   ERROR <why> (not consumed)
-- Events in log:tasks: those of the end of an attempt
-- Orders in inbox:{agent}:critical: stop_task (of what was claimed: the agent may not know that it was given up)
prove_due()
local MOST = tonumber(ARGV[10])

-- One broken task must not keep the others of its agent.
local function take_back(agent_id, id, term)
  local task = load_rest(load_task(id))
  if not is_held(task) or task.agent_id ~= agent_id then
    -- Its record is gone or says otherwise (flushed, or a fail-over rewound it): the set must not go on counting it.
    load_of(agent_id)
    gather('SREM', P .. 'inflight:' .. agent_id, id)
    return 'FOREIGN'
  elseif (tonumber(task.term) or 0) > term then
    return 'LATER'
  end
  end_attempt(task, 'agent_lost', 'agent_lost', "agent '" .. agent_id .. "' was lost", true)
  return 'TAKEN'
end

local function reclaim(i)
  local entry, agent_id, term = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  if not is_present('in:losses', entry) then
    return 'GONE'
  end
  if reports_wait_before(entry) then
    return 'WAIT'
  end
  local taken, broken = 0, nil
  for _, id in ipairs(call('SMEMBERS', P .. 'inflight:' .. agent_id)) do
    if taken == MOST then
      return broken or 'MORE'
    end
    local word, failed = guarded(take_back, agent_id, id, term)
    if failed then
      broken = word
    elseif word == 'TAKEN' then
      taken = taken + 1
    end
  end
  if broken then
    return broken
  end
  -- Nothing is left of this loss; unless a later one waits, the tick need not announce it again.
  local current = tonumber(call('HGET', P .. 'agent:' .. agent_id, 'term') or '0')
  if current - 1 <= term then
    call('ZREM', P .. 'agents:lost', agent_id)
  end
  return 'OK'
end

local words, done = {}, {}
for i = 12, 11 + tonumber(ARGV[11]) * 3, 3 do
  local word, failed = guarded(reclaim, i)
  words[#words + 1] = word
  if word == 'OK' or word == 'GONE' then
    done[#done + 1] = ARGV[i]
  end
end
local result = finish_tasks(words)
consume('in:losses', 'distributor', done)
return result
