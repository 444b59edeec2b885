#!lua
-- Assigns waiting tasks to agents as planned; the only authority over who gets what.
-- include: base tasks
-- moves: queued>assigned
-- ARGV[5]  ms within which an agent has to claim what it is assigned
-- ARGV[6]  ms that bound an attempt of an agent without incarnation, whose leases cannot be listed
-- ARGV[7]  number of explanations, then each (opaque JSON)
-- then the number of placements, then for each:
--   pool | agent id | the agent's rev as the plan saw it | lease (16 hex digits, fresh) | index of its explanation
-- Returns {words, loads, pools, pools_rev, raised}. Words: ASSIGNED; EMPTY (nothing waits in the pool); INACTIVE, CHANGED,
--   FULL (the agent is not as the plan saw it); ERROR <why>
-- Events in log:tasks: task.assigned
local START_TIMEOUT, UNLISTED_TIMEOUT = tonumber(ARGV[5]), tonumber(ARGV[6])
local explanations = {}
local at = 8
for i = 1, tonumber(ARGV[7]) do
  explanations[i] = ARGV[at]
  at = at + 1
end

local agents = {}
local function load_agent(id)
  if not agents[id] then
    local values = call('HMGET', P .. 'agent:' .. id, 'rev', 'capacity', 'term', 'incarnation')
    agents[id] = {
      active = call('SISMEMBER', P .. 'agents:active', id) == 1,
      rev = values[1], capacity = tonumber(values[2]) or 0, term = values[3] or '0', incarnation = values[4] or '',
      load = call('SCARD', P .. 'inflight:' .. id),
    }
    -- Reading each lane's length proves its type before anything is popped.
    for _, lane in pairs(LANE) do
      call('XLEN', P .. 'inbox:' .. id .. ':' .. lane)
    end
  end
  return agents[id]
end

local function dispatch(i)
  local pool, agent_id, rev, lease, explanation = unpack(ARGV, i, i + 4)
  local agent = load_agent(agent_id)
  touched_agents[agent_id] = true
  if not agent.active then
    return 'INACTIVE'
  elseif agent.rev ~= rev then
    return 'CHANGED'
  elseif agent.load >= agent.capacity then
    return 'FULL'
  end
  touched_pools[pool] = touched_pools[pool] or ''
  local id, key, values
  repeat
    id = call('ZPOPMIN', P .. 'queue:' .. pool)[1]
    if not id then
      return 'EMPTY'
    end
    key = P .. 'task:' .. id
    values = call('HMGET', key, 'state', 'priority', 'attempt', 'timeout', 'deadline', 'body')
    -- A name of a task that does not wait (a fail-over may leave one) is dropped with the pop.
  until values[1] == 'queued'
  local priority, attempt, body = values[2], int((tonumber(values[3]) or 0) + 1), values[6]
  local task = { id = id, state = 'assigned', start_by = int(now + START_TIMEOUT), deadline = values[5] or nil }
  local timeout = tonumber(values[4]) or (agent.incarnation == '' and UNLISTED_TIMEOUT) or nil
  call('SADD', P .. 'inflight:' .. agent_id, id)
  agent.load = agent.load + 1
  local entry = call('XADD', P .. 'inbox:' .. agent_id .. ':' .. LANE[priority], '*', 'message_type', 'task_assignment',
    'data', body, 'task_id', id, 'lease', lease, 'attempt', attempt, 'incarnation', agent.incarnation)
  local fields = {
    'state', 'assigned', 'lease', lease, 'agent_id', agent_id, 'term', agent.term, 'entry', entry, 'attempt', attempt,
    'assigned_at', NOW, 'start_by', task.start_by, 'placement', explanations[tonumber(explanation)],
  }
  if timeout then
    task.timeout_at = int(now + timeout)
    fields[#fields + 1] = 'timeout_at'
    fields[#fields + 1] = task.timeout_at
  end
  set_alarm(task)
  call('HSET', key, unpack(fields))
  move(priority, 'queued', 'assigned')
  bump('backlog_bytes', -#body)
  log_task('task.assigned', id, 'agent_id', agent_id, 'attempt', attempt)
  return 'ASSIGNED'
end

local words = {}
local count = tonumber(ARGV[at])
for i = at + 1, at + count * 5, 5 do
  words[#words + 1] = guarded(dispatch, i)
end
return finish_tasks(words)
