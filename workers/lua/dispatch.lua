#!lua
-- Assigns waiting tasks to agents as planned; the only authority over which agent gets a task.
-- include: base batches records tasklog tasks ends histograms
-- moves: queued>assigned queued>expired
-- keys: agent:{id} hash r | agents:active set r | queue:{pool} zset rw | task:{id} hash rw | inflight:{agent} set w
-- keys: suspended hash rw | unclaimed zset w | inbox:{agent}:{lane} stream w
-- LIMITS.claim_within_ms  ms within which an agent has to claim an assigned task, by the clock of attempts
-- LIMITS.unlisted_timeout_ms  ms after which an attempt of an agent without incarnation ends, because its leases cannot
--   be listed
-- LIMITS.head_start_urgent, head_start_critical, head_start_high, head_start_normal, head_start_low  head start in ms
-- ARGV[3]  number of explanations, then each (opaque JSON)
-- then the number of groups of placements that share all this, then for each:
--   pool | agent id | the agent's rev as the plan saw it | index of its explanation
--   | a lease (16 hex digits, fresh) for each placement, without separators; if the plan names the tasks, then the id of
--   each, with a space before it
-- then the number of alternatives, then for each:
--   number of a group | agent id | the agent's rev as the plan saw it: that agent gets the last task of the group if the
--   agent of the group is full
-- Groups get their tasks in turn: the first placement of each group, then the second of each group that has one, and so
-- on. A task whose deadline has passed is not assigned: it expires.
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words, in that order: ASSIGNED; MOVED (assigned to the
--   alternative); EMPTY (no task waits in the pool, or it expired); GONE (the task that the plan names does not wait in
--   the pool any more, or it expired); INACTIVE (or suspended), CHANGED, FULL (the agent is not as the plan saw it);
--   ERROR <why>
-- Events in log:tasks: task.assigned, task.expired
-- Histograms: wait:{priority}, from the time at which the task could be placed (submitted, or due after a delay) to its
--   assignment
local CLAIM_BY = int(attempt_time(now) + tonumber(LIMITS.claim_within_ms))
local UNLISTED_TIMEOUT = tonumber(LIMITS.unlisted_timeout_ms)
local LEASE = 16
-- priority -> score -> tasks that were assigned: a task waits since its score and the head start of its priority.
local assigned_scores = {}
for priority in pairs(LANE) do
  assigned_scores[priority] = {}
end
local explanations = {}
local at = 4
for i = 1, tonumber(ARGV[3]) do
  explanations[i] = ARGV[at]
  at = at + 1
end

-- Returns true while an agent is suspended: the registry has handled no fact of it since it returned a task unstarted.
local HAS_SUSPENDED = call('HLEN', P .. 'suspended') > 0
local function is_suspended(id)
  local before = HAS_SUSPENDED and call('HGET', P .. 'suspended', id)
  if before and before ~= last_facts(id) then
    call('HDEL', P .. 'suspended', id)
    return false
  end
  return before and true or false
end

local agents, are_active = {}, {}
local function load_agent(id)
  local agent = agents[id]
  if not agent then
    local values = call('HMGET', P .. 'agent:' .. id, 'rev', 'capacity', 'term', 'incarnation')
    agent = {
      active = are_active[id] == 1 and not is_suspended(id),
      rev = values[1], capacity = tonumber(values[2]) or 0, term = values[3] or '0', incarnation = values[4] or '',
      load = load_of(id), inflight = P .. 'inflight:' .. id, lanes = {}, has_new_tasks = false,
    }
    agents[id] = agent
  end
  return agent
end

-- First the number of tasks that each agent may get, then as many tasks of each pool as that makes, popped at once.
local wanted = {}
-- Reserves room for a group; returns the word for its placements without room.
local function accept(group)
  local agent = load_agent(group.agent_id)
  if not agent.active then
    return 'INACTIVE'
  elseif agent.rev ~= group.rev then
    return 'CHANGED'
  end
  if group.ids then
    touch_pool(group.pool)
  end
  group.room = math.min(group.count, math.max(0, agent.capacity - agent.load))
  agent.load = agent.load + group.room
  if group.ids then
    return 'FULL'
  end
  wanted[group.pool] = (wanted[group.pool] or 0) + group.room
  return 'FULL'
end

-- Reserves room on the alternative of a group that did not get all of its room.
local function accept_other(group)
  local id = group.other_id
  if are_active[id] == nil then
    are_active[id] = call('SMISMEMBER', P .. 'agents:active', id)[1]
  end
  local agent = load_agent(id)
  if agent.active and agent.rev == group.other_rev and agent.load < agent.capacity then
    agent.load = agent.load + 1
    group.moves = true
    if not group.ids then
      wanted[group.pool] = wanted[group.pool] + 1
    end
  end
end

-- Pops the next tasks of a pool, in their order.
local popped = {}
local function pop(pool)
  local tasks, in_pool = { next = 1 }, ' ' .. pool .. ' '
  popped[pool] = tasks
  touch_pool(pool)
  while wanted[pool] > 0 do
    local found = call('ZPOPMIN', P .. 'queue:' .. pool, wanted[pool])
    if #found == 0 then
      break
    end
    for i = 1, #found, 2 do
      local key = P .. 'task:' .. found[i]
      local values = redis.pcall('HMGET', key, 'state', 'submission', 'body')
      -- An id that is not of a task that waits in this pool (a fail-over may leave one) is dropped with the pop.
      if values[1] == 'queued' and values[2] and string.find(values[2], in_pool, 1, true) then
        tasks[#tasks + 1] = { id = found[i], key = key, score = found[i + 1], values = values }
        wanted[pool] = wanted[pool] - 1
      end
    end
  end
end

-- Assigns a task to an agent; returns nil if it has expired.
local function assign(group, agent_id, lease, task)
  local agent = agents[agent_id]
  local submission, body = task.values[2], task.values[3]
  local first = string.find(submission, ' ', 1, true)
  local second = string.find(submission, ' ', first + 1, true)
  local priority, attempt, timeout, deadline, since = string.sub(submission, 1, first - 1), '1', nil, nil, nil
  if string.sub(submission, second + 1, second + 1) == '1' then
    local extras = call('HMGET', task.key, 'attempt', 'timeout', 'deadline', 'queued_at')
    attempt, timeout, deadline = extras[1] and int(tonumber(extras[1]) + 1) or '1', tonumber(extras[2] or nil), extras[3]
    since = tonumber(extras[4] or nil)
    if deadline and tonumber(deadline) <= now then
      check_due_types()
      end_waiting(load_task(task.id), 'expired', '')
      return nil
    end
  end
  timeout = timeout or (agent.incarnation == '' and UNLISTED_TIMEOUT)
  if deadline or timeout then
    check_due_types()
  end
  local lane = agent.lanes[priority] or P .. 'inbox:' .. agent_id .. ':' .. LANE[priority]
  agent.lanes[priority] = lane
  local entry = call('XADD', lane, '*', 'message_type', 'task_assignment',
    'data', body, 'task_id', task.id, 'lease', lease, 'attempt', attempt, 'incarnation', agent.incarnation)
  local timeout_at = timeout and int(attempt_time(now) + timeout) or '0'
  local has_alarm = (deadline or timeout) and '1' or '0'
  call('HSET', task.key, 'state', 'assigned', 'assignment', pack_assignment(lease, agent_id, entry, has_alarm, agent.term, attempt,
    NOW, CLAIM_BY, timeout_at, group.explanation))
  gather('SADD', agent.inflight, task.id)
  agent.has_new_tasks = true
  if has_alarm == '1' then
    task.state, task.deadline, task.timeout_at = 'assigned', deadline or nil, timeout and timeout_at
    set_alarm(task)
  end
  if since then
    observe('wait:' .. priority, now - since)
  else
    local scores, score = assigned_scores[priority], task.score
    scores[score] = (scores[score] or 0) + 1
  end
  move(priority, 'queued', 'assigned')
  bump('backlog_bytes', -#body)
  log_each('task.assigned', task.id, 'agent_id', agent_id, 'attempt', attempt)
  return 'ASSIGNED'
end

-- Assigns a task that the plan names; returns nil if it does not wait in this pool any more, or has expired. The record
-- decides: an id that a fail-over left in the queue is removed.
local function assign_named(group, agent_id, lease, id)
  local key = P .. 'task:' .. id
  local values = redis.pcall('HMGET', key, 'state', 'submission', 'body')
  local word
  if values[1] == 'queued' and pool_of(values[2]) == group.pool then
    word = assign(group, agent_id, lease, { id = id, key = key, values = values, score = score_of(values[2]) })
  end
  unqueue(id, group.pool)
  return word
end

local groups, agent_ids, count, longest = {}, {}, 0, 0
for n = 1, tonumber(ARGV[at]) do
  local pool, agent_id, rev, explanation, leases = unpack(ARGV, at + 1, at + 5)
  local ids, named = nil, string.find(leases, ' ', 1, true)
  if named then
    ids = {}
    for id in string.gmatch(string.sub(leases, named), '%S+') do
      ids[#ids + 1] = id
    end
    leases = string.sub(leases, 1, named - 1)
  end
  groups[n] = { pool = pool, agent_id = agent_id, rev = rev, explanation = explanations[tonumber(explanation)],
    leases = leases, ids = ids, count = #leases / LEASE, taken = 0, room = 0 }
  agent_ids[n] = agent_id
  count, longest = count + groups[n].count, math.max(longest, groups[n].count)
  at = at + 5
end
for i = 1, #agent_ids, 1000 do
  local some = { unpack(agent_ids, i, math.min(i + 999, #agent_ids)) }
  for n, is_member in ipairs(call('SMISMEMBER', P .. 'agents:active', unpack(some))) do
    are_active[some[n]] = is_member
  end
end
for _, group in ipairs(groups) do
  group.otherwise = guarded(accept, group)
end
for _ = 1, tonumber(ARGV[at + 1] or 0) do
  local n, id, rev = unpack(ARGV, at + 2, at + 4)
  local group = groups[tonumber(n)]
  group.other_id, group.other_rev = id, rev
  if group.otherwise == 'FULL' and group.room < group.count then
    guarded(accept_other, group)
  end
  at = at + 3
end
for pool in pairs(wanted) do
  local word, failed = guarded(pop, pool)
  popped[pool].failed = failed and word or nil
end
local turns = {}
for nth = 1, longest do
  for _, group in ipairs(groups) do
    if group.count >= nth then
      turns[#turns + 1] = group
    end
  end
end
local words = guard_each(count, function(n)
  local group = turns[n]
  group.taken = group.taken + 1
  local agent_id, done = group.agent_id, 'ASSIGNED'
  if group.room > 0 then
    group.room = group.room - 1
  elseif group.moves and group.taken == group.count then
    agent_id, done = group.other_id, 'MOVED'
  else
    bump('plans_refused', 1)
    return group.otherwise
  end
  local tasks, last = popped[group.pool], group.taken * LEASE
  local lease = string.sub(group.leases, last - LEASE + 1, last)
  if group.ids then
    local named = assign_named(group, agent_id, lease, group.ids[group.taken])
    if not named then
      bump('plans_late', 1)
    end
    return named and done or 'GONE'
  end
  local word
  while not word do
    local task = tasks[tasks.next]
    if not task then
      bump('plans_late', 1)
      return tasks.failed or 'EMPTY'
    end
    word = assign(group, agent_id, lease, task) and done
    tasks.next = tasks.next + 1
  end
  return word
end)
for priority, scores in pairs(assigned_scores) do
  local head_start = next(scores) and tonumber(LIMITS['head_start_' .. priority])
  for score, count in pairs(scores) do
    observe('wait:' .. priority, now - score - head_start, count)
  end
end
-- Agents have to claim what they were assigned.
local claims = {}
for id, agent in pairs(agents) do
  if agent.has_new_tasks then
    claims[#claims + 1] = CLAIM_BY
    claims[#claims + 1] = id
  end
end
for i = 1, #claims, 1000 do
  call('ZADD', P .. 'unclaimed', 'LT', unpack(claims, i, math.min(i + 999, #claims)))
end
-- Popped tasks that could not be assigned go back to their queue.
for pool, tasks in pairs(popped) do
  for i = tasks.next, #tasks do
    enqueue(tasks[i].id, pool, tasks[i].score)
  end
end
return finish_tasks(words)
