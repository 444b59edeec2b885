#!lua flags=allow-oom
-- Takes back what lost agents had in flight, in the term that ended and in earlier ones.
-- include: base tasks attempts
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed assigned>cancelled running>cancelled
-- ARGV[12] tasks taken back at most for one loss in one call
-- ARGV[13] number of losses, then for each: entry id | agent id | term that ended
-- Returns {words, loads, pools, pools_rev}. Words: OK; WAIT (in:reports holds an entry older than the loss, which may
--   tell of finished work; not consumed); MORE (call again; not consumed); ERROR <why> (not consumed)
-- Events in log:tasks: those of the end of an attempt
local MOST = tonumber(ARGV[12])

local function is_older(id, than)
  local ms, seq = entry_ms(id)
  local than_ms, than_seq = entry_ms(than)
  return ms < than_ms or (ms == than_ms and seq < than_seq)
end

local oldest_report = call('XRANGE', P .. 'in:reports', '-', '+', 'COUNT', 1)[1]

local function reclaim(i)
  local entry, agent_id, term = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  if oldest_report and is_older(oldest_report[1], entry) then
    return 'WAIT'
  end
  local taken = 0
  for _, id in ipairs(call('SMEMBERS', P .. 'inflight:' .. agent_id)) do
    local task = load_rest(load_task(id))
    if task.agent_id == agent_id and (tonumber(task.term) or 0) <= term then
      if taken == MOST then
        return 'MORE'
      end
      end_attempt(task, 'agent_lost', 'agent_lost', "agent '" .. agent_id .. "' was lost", true)
      taken = taken + 1
    elseif not task.state then
      -- Its record is gone (flushed, or a fail-over rewound it): the set must not go on counting it.
      call('SREM', P .. 'inflight:' .. agent_id, id)
    end
  end
  return 'OK'
end

local words, done = {}, {}
for i = 14, 13 + tonumber(ARGV[13]) * 3, 3 do
  local word = guarded(reclaim, i)
  words[#words + 1] = word
  if word == 'OK' then
    done[#done + 1] = ARGV[i]
  end
end
consume('in:losses', 'distributor', done)
return finish_tasks(words)
