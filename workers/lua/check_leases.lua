#!lua flags=allow-oom
-- Compares the leases that agents list with those that the records say they hold. A claimed lease that is missing from
-- two lists, the second asked for after the first was judged, is lost; one that no record knows is named back to its agent.
-- include: base liveness agents records
-- keys: inflight:{agent} set r | inbox:{agent}:{lane} stream rw | agent:{id} hash w | in:losses stream w
-- keys: in:registry stream w
-- ARGV[8] number of lists, then for each:
--   entry id | agent id | incarnation | ask | number n of leases | n times task id | lease
-- Returns {words}. Words: OK; SUSPECTED (a lease is missing, the agent is asked again); LOST (one was missing again); OUTDATED
--   (of another process, or of an earlier question; nothing changed); WAIT (in:reports holds an entry older than the list,
--   which may tell of finished work; not consumed); GONE (its entry was handled before);
--   ERROR <why> (not consumed)
-- Events in in:losses: lease.lost
-- Orders in inbox:{agent}:critical: list_leases (a lease is missing), stop_task (no record knows the lease)

local function words_of(text)
  local found = {}
  for word in string.gmatch(text or '', '%S+') do
    found[word] = true
  end
  return found
end

-- Whether a lease should have been on a list: its task was assigned in this term and before the list was made, and its
-- entry is gone from the inbox. (One that was claimed after the list was made looks the same; the second list will have
-- it. What an earlier term left is reclaimed, not checked.)
local function was_claimed(agent, id, listed_at)
  local task = load_rest(load_task(id))
  local is_own = is_held(task) and task.agent_id == agent.id
  if not is_own or tonumber(task.assigned_at) >= listed_at or tonumber(task.term) < tonumber(agent.term) then
    return nil
  end
  local lane = P .. 'inbox:' .. agent.id .. ':' .. LANE[task.priority]
  if #call('XRANGE', lane, task.entry, task.entry) > 0 then
    return nil
  end
  return task.lease
end

local function name_back(agent_id, task_id, lease)
  local task = load_task(task_id)
  if task.lease ~= lease or not is_held(task) then
    redis.pcall('XADD', P .. 'inbox:' .. agent_id .. ':critical', '*', 'message_type', 'coordination', 'data', '{}',
      'order', 'stop_task', 'task_id', task_id, 'lease', lease, 'reason', 'the coordinator does not know this lease')
  end
end

local function check_leases(i, count)
  local entry, id, incarnation, ask = unpack(ARGV, i, i + 3)
  if not is_present('in:registry', entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  if not agent.known or agent.incarnation ~= incarnation or agent.ask ~= ask then
    return 'OUTDATED'
  elseif reports_wait_before(entry) then
    return 'WAIT'
  end
  local listed = {}
  for j = i + 5, i + 4 + count * 2, 2 do
    listed[ARGV[j + 1]] = true
    name_back(id, ARGV[j], ARGV[j + 1])
  end
  local suspected, missing, lost = words_of(agent.suspects), {}, false
  for _, task_id in ipairs(call('SMEMBERS', P .. 'inflight:' .. id)) do
    local lease = was_claimed(agent, task_id, (entry_ms(entry)))
    if lease and not listed[lease] then
      if suspected[lease] then
        call('XADD', P .. 'in:losses', '*', 'type', 'lease.lost', 'data',
          '{"agent_id":"' .. id .. '","task_id":"' .. task_id .. '","lease":"' .. lease .. '"}')
        lost = true
      else
        missing[#missing + 1] = lease
      end
    end
  end
  call('HSET', P .. 'agent:' .. id, 'suspects', table.concat(missing, ' '), 'ask', '')
  if #missing > 0 then
    ask_for_leases(agent, entry)
  end
  return lost and 'LOST' or #missing > 0 and 'SUSPECTED' or 'OK'
end

local words, done = {}, {}
local at = 9
for _ = 1, tonumber(ARGV[8]) do
  local count = tonumber(ARGV[at + 4])
  local word, failed = guarded(check_leases, at, count)
  words[#words + 1] = word
  if not failed and word ~= 'WAIT' then
    done[#done + 1] = ARGV[at]
  end
  at = at + 5 + count * 2
end
finish()
consume('in:registry', 'registry', done)
return { words }
