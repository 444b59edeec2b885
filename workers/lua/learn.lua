#!lua
-- Shares what a distributor has learned of the agents with the other distributors, and records ejections: which agents
-- get no tasks of a type for a while, because they fail them.
-- include: base
-- keys: agent:{id} hash rw | log:agents stream w | log:learned stream w
-- ARGV[3]  the process that learned it: it skips its own entries
-- ARGV[4]  what it learned, opaque JSON; '' if that is nothing
-- ARGV[5]  number of ejections, then for each:
--   agent id | task type | ms that it lasts from now on; 0: it ends | failure rate of the agent | mean of the others
--   | number of ejections in a row
-- Returns {words}. Words: OK; for each ejection OK, KNOWN (another distributor recorded it), UNKNOWN (no such agent), or
--   ERROR <why>
-- Events in log:learned: agents.learned
-- Events in log:agents: agent.ejected, agent.readmitted (before the time was over)

-- Task types of one agent that are kept.
local MOST_TYPES = 20

-- Returns the ejections of an agent that are not over. An end far ahead means that the server's clock was changed.
local MOST_MS = 1000000
local function current(raw)
  local ok, found = pcall(cjson.decode, raw or '')
  local kept = {}
  for _, one in ipairs(ok and type(found) == 'table' and found or {}) do
    local at = type(one) == 'table' and tonumber(one['until']) or 0
    if at > now and at <= now + MOST_MS then
      kept[#kept + 1] = one
    end
  end
  return kept
end

local function record(i)
  local id, task_type, ms, rate, others, in_a_row = unpack(ARGV, i, i + 5)
  local key = P .. 'agent:' .. id
  local values = call('HMGET', key, 'agent_id', 'ejected')
  if not values[1] then
    return 'UNKNOWN'
  end
  local kept, before = {}, nil
  for _, one in ipairs(current(values[2])) do
    if one.task_type == task_type then
      before = one
    elseif #kept < MOST_TYPES - 1 then
      kept[#kept + 1] = one
    end
  end
  ms = tonumber(ms)
  if (ms > 0) == (before ~= nil) then
    return 'KNOWN'
  end
  if ms > 0 then
    table.insert(kept, 1, { task_type = task_type, ['until'] = now + ms, for_ms = ms, failure_rate = tonumber(rate),
      others_rate = tonumber(others), in_a_row = tonumber(in_a_row) })
  end
  if #kept > 0 then
    call('HSET', key, 'ejected', cjson.encode(kept))
  else
    call('HDEL', key, 'ejected')
  end
  log('log:agents', 'type', ms > 0 and 'agent.ejected' or 'agent.readmitted', 'agent_id', id, 'task_type', task_type,
    'for_ms', int(ms), 'failure_rate', rate, 'others_rate', others)
  return 'OK'
end

local words = { 'OK' }
for n = 1, tonumber(ARGV[5]) do
  words[n + 1] = guarded(record, 6 * n)
end
if ARGV[4] ~= '' then
  log('log:learned', 'type', 'agents.learned', 'by', ARGV[3], 'data', ARGV[4])
end
return finish_words(words)
