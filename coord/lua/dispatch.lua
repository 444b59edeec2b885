#!lua
-- Assigns waiting tasks to agents as planned; the only authority over who gets what.
-- include: base records tasks
-- moves: queued>assigned
-- ARGV[5]  ms within which an agent has to claim what it is assigned
-- ARGV[6]  ms that bound an attempt of an agent without incarnation, whose leases cannot be listed
-- ARGV[7]  number of explanations, then each (opaque JSON)
-- then the number of placements, then for each:
--   pool | agent id | the agent's rev as the plan saw it | lease (16 hex digits, fresh) | index of its explanation
-- Returns {words, loads, pools, pools_rev, raised}. Words: ASSIGNED; EMPTY (nothing waits in the pool); INACTIVE, CHANGED,
--   FULL (the agent is not as the plan saw it); ERROR <why>
-- Events in log:tasks: task.assigned
local START_BY, UNLISTED_TIMEOUT = int(now + tonumber(ARGV[5])), tonumber(ARGV[6])
local explanations = {}
local at = 8
for i = 1, tonumber(ARGV[7]) do
  explanations[i] = ARGV[at]
  at = at + 1
end

local agents = {}
local function load_agent(id)
  if not agents[id] then
    local inflight = P .. 'inflight:' .. id
    local values = call('HMGET', P .. 'agent:' .. id, 'rev', 'capacity', 'term', 'incarnation')
    agents[id] = {
      active = call('SISMEMBER', P .. 'agents:active', id) == 1,
      rev = values[1], capacity = tonumber(values[2]) or 0, term = values[3] or '0', incarnation = values[4] or '',
      load = call('SCARD', inflight), inflight = inflight, lanes = {},
    }
  end
  return agents[id]
end

-- First who may be given a task, then as many tasks of each pool as that makes, popped at once.
local wanted = {}
local function accept(i)
  local pool, agent_id, rev = unpack(ARGV, i, i + 2)
  local agent = load_agent(agent_id)
  touched_agents[agent_id] = true
  if not agent.active then
    return 'INACTIVE'
  elseif agent.rev ~= rev then
    return 'CHANGED'
  elseif agent.load >= agent.capacity then
    return 'FULL'
  end
  agent.load = agent.load + 1
  wanted[pool] = (wanted[pool] or 0) + 1
  return 'ASSIGNED'
end

-- The next tasks of a pool, in their order.
local popped = {}
local function pop(pool)
  local tasks = { next = 1 }
  popped[pool] = tasks
  touch_pool(pool)
  while wanted[pool] > 0 do
    local found = call('ZPOPMIN', P .. 'queue:' .. pool, wanted[pool])
    if #found == 0 then
      break
    end
    for i = 1, #found, 2 do
      local key = P .. 'task:' .. found[i]
      local values = redis.pcall('HMGET', key, 'state', 'priority', 'attempt', 'timeout', 'deadline', 'body')
      -- A name of what is no waiting task (a fail-over may leave one) is dropped with the pop.
      if values[1] == 'queued' then
        tasks[#tasks + 1] = { id = found[i], key = key, score = found[i + 1], values = values }
        wanted[pool] = wanted[pool] - 1
      end
    end
  end
end

local function assign(i, task)
  local agent_id, lease, explanation = ARGV[i + 1], ARGV[i + 3], ARGV[i + 4]
  local agent = agents[agent_id]
  local _, priority, attempt, timeout, deadline, body = unpack(task.values)
  attempt = attempt and int(tonumber(attempt) + 1) or '1'
  timeout = tonumber(timeout) or (agent.incarnation == '' and UNLISTED_TIMEOUT)
  local lane = agent.lanes[priority] or P .. 'inbox:' .. agent_id .. ':' .. LANE[priority]
  agent.lanes[priority] = lane
  local entry = call('XADD', lane, '*', 'message_type', 'task_assignment',
    'data', body, 'task_id', task.id, 'lease', lease, 'attempt', attempt, 'incarnation', agent.incarnation)
  local timeout_at = timeout and int(now + timeout) or '0'
  call('HSET', task.key, 'state', 'assigned', 'assignment', pack_assignment(lease, agent_id, entry, agent.term, attempt, NOW,
    START_BY, timeout_at, explanations[tonumber(explanation)]))
  gather('SADD', agent.inflight, task.id)
  if deadline or timeout then
    task.state, task.start_by, task.deadline, task.timeout_at = 'assigned', START_BY, deadline or nil, timeout and timeout_at
    set_alarm(task)
  else
    alarms[task.id] = START_BY
  end
  move(priority, 'queued', 'assigned')
  bump('backlog_bytes', -#body)
  log_task('task.assigned', task.id, 'agent_id', agent_id, 'attempt', attempt)
  return 'ASSIGNED'
end

local words = {}
local first, last = at + 1, at + tonumber(ARGV[at]) * 5
for i = first, last, 5 do
  words[#words + 1] = guarded(accept, i)
end
for pool in pairs(wanted) do
  local word, failed = guarded(pop, pool)
  popped[pool].failed = failed and word or nil
end
for i = first, last, 5 do
  local n = (i - first) / 5 + 1
  if words[n] == 'ASSIGNED' then
    local tasks = popped[ARGV[i]]
    local task = tasks[tasks.next]
    if task then
      local word, failed = guarded(assign, i, task)
      words[n] = word
      if not failed then
        tasks.next = tasks.next + 1
      end
    else
      words[n] = tasks.failed or 'EMPTY'
    end
  end
end
-- Nothing is ever nowhere: what could not be assigned waits on.
for pool, tasks in pairs(popped) do
  for i = tasks.next, #tasks do
    gather('ZADD', P .. 'queue:' .. pool, tasks[i].score, tasks[i].id)
  end
end
return finish_tasks(words)
