-- Tasks: the counters of states, queues and pools, loads, alarms, and the clock of attempts.
-- include: base batches tasklog histograms
-- keys: inflight:{agent} set r | counters hash r | clock hash r | unclaimed zset r | tasks:terminal zset r
-- keys: tasks:dead zset r | tasks:refused zset r | queue:{pool} zset rw | pools hash rw | pools:changed zset w
-- keys: alarms zset rw | deadlines zset rw | limits zset rw | agent:{id} hash r | log:loads stream w
-- LIMITS.loads_by  the process that calls, if other distributors follow the loads; else there is no such limit

-- The counters of states: submitted = scheduled + queued + assigned + running + terminal, for each priority, with the
-- tasks that operators moved to it (prioritized_to) and from it (prioritized_from). Moves are counted by from, to and
-- priority, and are added to the counters when the batch is done.
local moves = {}
local function move(priority, from, to)
  local of_from = moves[from]
  if not of_from then
    of_from = {}
    moves[from] = of_from
  end
  local of_to = of_from[to]
  if not of_to then
    of_to = {}
    of_from[to] = of_to
  end
  of_to[priority] = (of_to[priority] or 0) + 1
end

local function count_moves()
  for from, of_from in pairs(moves) do
    for to, of_to in pairs(of_from) do
      for priority, count in pairs(of_to) do
        -- `submitted` is a total: a task that leaves it stays counted.
        bump(from .. ':' .. priority, from == 'submitted' and count or -count)
        bump(to .. ':' .. priority, count)
      end
    end
  end
end

-- Pools whose queue changes, and their definition if this script knows it. Touching a pool checks the type of its
-- queue.
local touched_pools = {}
local function touch_pool(pool, definition)
  if not touched_pools[pool] then
    call('ZCARD', P .. 'queue:' .. pool)
  end
  touched_pools[pool] = definition or touched_pools[pool] or ''
end

-- The place of a task in its queue; false: it leaves the queue. The last change in a batch counts.
local queued_at = {}
local function place(id, pool, score)
  touch_pool(pool)
  local of_pool = queued_at[pool]
  if not of_pool then
    of_pool = {}
    queued_at[pool] = of_pool
  end
  of_pool[id] = score
end

local function enqueue(id, pool, score)
  place(id, pool, score)
end

local function unqueue(id, pool)
  place(id, pool, false)
end

-- Gathers a write for each task of an index: a score is set, false removes the task.
local function gather_scores(key, scores)
  for id, score in pairs(scores) do
    if score then
      gather('ZADD', key, score, id)
    else
      gather('ZREM', key, id)
    end
  end
end

-- Named queues in which tasks that waited change their places. Distributors know the first tasks of such a queue, and
-- read them again.
local reordered_pools = {}

-- Updates the table of pools; returns pool, length and score of the first task of each touched pool. A queue or a set
-- of a wrong type is skipped, here and below: its own entry has failed, and the batch must still be counted.
local CHANGES_KEPT = 10000
local function finish_pools()
  local states, changed = {}, {}
  for pool, definition in pairs(touched_pools) do
    local length = redis.pcall('ZCARD', P .. 'queue:' .. pool)
    if type(length) == 'number' then
      local head, is_changed = '0', reordered_pools[pool]
      if length > 0 then
        head = call('ZRANGE', P .. 'queue:' .. pool, 0, 0, 'WITHSCORES')[2]
        is_changed = call('HSETNX', P .. 'pools', pool, definition) == 1 or is_changed
      else
        is_changed = call('HDEL', P .. 'pools', pool) == 1 or is_changed
      end
      if is_changed then
        changed[#changed + 1] = pool
      end
      states[#states + 1] = pool
      states[#states + 1] = int(length)
      states[#states + 1] = head
    end
  end
  if #changed == 0 then
    return states
  end
  bump('pools_rev', #changed)
  -- Which pools started or stopped waiting, or were reordered, at which revision. Readers notice an entry that could not be written: the
  -- newest entry is not of the table's revision.
  local rev = (tonumber(call('HGET', P .. 'counters', 'pools_rev')) or 0) + #changed
  for i = 1, #changed, 1000 do
    local entries = {}
    for n = i, math.min(i + 999, #changed) do
      entries[#entries + 1] = int(rev)
      entries[#entries + 1] = changed[n]
    end
    redis.pcall('ZADD', P .. 'pools:changed', unpack(entries))
  end
  -- Trimmed once in 256: more entries than the limit do no harm until then.
  if math.floor(rev / 256) ~= math.floor((rev - #changed) / 256) then
    redis.pcall('ZREMRANGEBYRANK', P .. 'pools:changed', 0, -CHANGES_KEPT - 1)
  end
  return states
end

-- Agents whose load changes, with the load before the batch: the number of tasks assigned and not settled. The gathered
-- writes give the load after it, so the set is not counted again. Counting it before checks its type.
local loads = {}
local function load_of(agent)
  local load = loads[agent]
  if not load then
    load = call('SCARD', P .. 'inflight:' .. agent)
    loads[agent] = load
  end
  return load
end

-- Returns agent and load in turn, and for each agent how many slots the batch has freed (negative: taken).
local function finish_loads()
  local current, freed = {}, {}
  for agent, load in pairs(loads) do
    local key = P .. 'inflight:' .. agent
    current[#current + 1] = agent
    local change = written('SREM', key) - written('SADD', key)
    current[#current + 1] = load - change
    freed[#freed + 1] = change
  end
  return current, freed
end

-- Shares the loads after the batch with the other distributors; returns the id of the entry, which orders it among the
-- changes of others, and the slots that the batch has freed, or nothing. Loads matter for milliseconds only: so few
-- entries are kept, and a failed write undoes nothing.
local LOADS_KEPT = 500
local function share_loads(current, freed)
  if not LIMITS.loads_by or #current == 0 then
    return {}
  end
  local id = redis.pcall('XADD', P .. 'log:loads', 'MAXLEN', '~', LOADS_KEPT, '*', 'by', LIMITS.loads_by,
    'loads', table.concat(current, ' '))
  return type(id) == 'string' and { id, freed } or {}
end

-- The clock of attempts measures the limits of an attempt: its timeout, the time to claim it, the grace of a cancel. It
-- stands still while no distributor works, and never passes a report that waits to be read (run_alarms advances it). So
-- an attempt that ended in time is never timed out because the coordinator was absent. It has advanced up to
-- `attempts_at` of the server's time.
local CLOCK_STEP = 500 -- ms that it advances in one step at most: five ticks of run_alarms
local attempt_clock, attempt_clock_at, is_clock_set
local function read_clock()
  if not attempt_clock then
    local values = call('HMGET', P .. 'clock', 'attempts', 'attempts_at')
    attempt_clock, attempt_clock_at = tonumber(values[1] or now), tonumber(values[2] or now)
    is_clock_set = values[1] and true or false
  end
end

-- Returns the clock of attempts at a moment of the server's time, both in ms.
local function attempt_time(ms)
  read_clock()
  return attempt_clock + math.min(CLOCK_STEP, ms - attempt_clock_at)
end

-- Returns the ids of an agent's last facts that the registry has handled: heartbeat, status, registration.
local function last_facts(agent_id)
  local ids = call('HMGET', P .. 'agent:' .. agent_id, 'beat_id', 'fact_id', 'registered_id')
  return (ids[1] or '') .. ' ' .. (ids[2] or '') .. ' ' .. (ids[3] or '')
end

-- When something is due for a task; the last setting in a batch counts. Three indexes, for three ways to be due:
--   alarms     a waiting task: its run time or its deadline, by the server's time
--   deadlines  a held task: its deadline, by the server's time, once older reports have been read
--   limits     a held task: its timeout or the grace of its cancel, by the clock of attempts
-- The time to claim an assigned task is in none of them: most tasks are claimed within milliseconds. Instead the agent
-- is in `unclaimed`, by which run_alarms checks all tasks of the agent.
local due_in = { alarms = {}, deadlines = {}, limits = {} }
local function sooner(due, at)
  at = tonumber(at)
  return at and (not due or at < due) and at or due
end

-- Most tasks have nothing due. So the types of these indexes are checked only for a task that may have, before anything
-- of it changes.
local is_due_checked = false
local function check_due_types()
  if not is_due_checked then
    for _, index in ipairs({ 'alarms', 'deadlines', 'limits' }) do
      call('ZCARD', P .. index)
    end
    is_due_checked = true
  end
end

local function set_due(id, alarm, deadline, limit)
  due_in.alarms[id] = alarm and int(alarm) or false
  due_in.deadlines[id] = deadline and int(deadline) or false
  due_in.limits[id] = limit and int(limit) or false
end

local function set_alarm(task)
  local state, deadline = task.state, tonumber(task.deadline)
  if state == 'scheduled' then
    set_due(task.id, sooner(deadline, task.run_at))
  elseif state == 'queued' then
    set_due(task.id, deadline)
  elseif state == 'assigned' or state == 'running' then
    set_due(task.id, nil, deadline, sooner(tonumber(task.timeout_at), task.cancel_by))
  else
    set_due(task.id)
  end
end

-- The types of the keys that every batch may write to are checked before anything begins.
for _, index in ipairs({ 'unclaimed', 'tasks:terminal', 'tasks:dead', 'tasks:refused' }) do
  call('ZCARD', P .. index)
end
call('HLEN', P .. 'pools')

-- Finishes a batch of tasks; returns {words, loads, pools, pools_rev, raise of pools_rev by this call, {id of the entry
-- with these loads, slots freed of each agent}}; the last one is empty if nothing is shared.
local function finish_tasks(words)
  for pool, of_pool in pairs(queued_at) do
    gather_scores(P .. 'queue:' .. pool, of_pool)
  end
  for index, of_index in pairs(due_in) do
    gather_scores(P .. index, of_index)
  end
  write_gathered()
  local pools = finish_pools()
  local loads_now, freed = finish_loads()
  count_moves()
  write_log()
  write_histograms()
  finish()
  local rev = call('HGET', P .. 'counters', 'pools_rev') or '0'
  return { words, loads_now, pools, rev, int(bumps.pools_rev or 0), share_loads(loads_now, freed) }
end
