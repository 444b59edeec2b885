-- A task's record: its packed fields, and which fields are read when.
-- include: base
-- keys: task:{id} hash rw
local LANE = { urgent = 'critical', critical = 'critical', high = 'high', normal = 'normal', low = 'low' }

-- The cost of a task is the number of fields that are written for it. So the submission is one field of its record:
-- priority, caller that gets the outcome (or nothing), 1 if the record may have optional fields (0: it has none),
-- submitted at, score, pool, digest.
local SUBMISSION = '^(%S+) (%S*) (%S) (%S+) (%S+) (%S+) (%S+)$'
local function pack_submission(task)
  return task.priority .. ' ' .. (task.caller or '') .. ' ' .. task.has_extras .. ' ' .. task.submitted_at .. ' ' .. task.score .. ' '
    .. task.pool .. ' ' .. task.digest
end

-- The assignment is another field: lease, agent, inbox entry, 1 if the task may have an alarm (0: it has none), term,
-- attempt, assigned at, to be started by, to be ended by (ms; 0: no limit), placement (opaque JSON).
local ASSIGNMENT = '^(%S+) (%S+) (%S+) %S (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$'
local function pack_assignment(lease, agent_id, entry, has_alarm, term, attempt, assigned_at, start_by, timeout_at, placement)
  return lease .. ' ' .. agent_id .. ' ' .. entry .. ' ' .. has_alarm .. ' ' .. term .. ' ' .. attempt .. ' ' .. assigned_at
    .. ' ' .. start_by .. ' ' .. timeout_at .. ' ' .. placement
end

local function digest_of(submission)
  return string.match(submission, '%S+$')
end

local function caller_of(submission)
  return string.match(submission, '^%S+ (%S*)')
end

local function pool_of(submission)
  return string.match(submission, '(%S+) %S+$')
end

-- Returns the score of a task: submitted or due at, less the head start of its priority.
local function score_of(submission)
  return string.match(submission, '^%S+ %S* %S %S+ (%S+)')
end

local find, sub = string.find, string.sub

-- Returns the ms at which a task was assigned. Tasks that were assigned in one batch share what begins at `rest`: so it
-- is decoded once for all of them.
local decoded, LONG_ENOUGH = {}, 60
local function assigned_at(task)
  local text = sub(task.assignment, task.rest, task.rest + LONG_ENOUGH)
  local at = decoded[text]
  if at == nil then
    at = tonumber(string.match(text, '^%S+ %S+ (%d+)') or nil)
    decoded[text] = at or false
  end
  return at
end

local function save_assignment(task)
  task.assignment = pack_assignment(task.lease, task.agent_id, task.entry, task.has_alarm, task.term, task.attempt, task.assigned_at,
    task.start_by or '0', task.timeout_at or '0', task.placement)
  call('HSET', task.key, 'assignment', task.assignment)
end

-- Returns the part of a task's record that every report needs. state is nil if there is no record, lease if no agent
-- has or had the task. The packed fields are split without patterns, which would cost as much as a command.
local function load_task(id)
  local key = P .. 'task:' .. id
  local values = call('HMGET', key, 'state', 'submission', 'assignment')
  local submission, assignment = values[2], values[3]
  local priority, caller, lease, agent_id, entry, has_alarm, rest
  if submission then
    local first = find(submission, ' ', 1, true)
    local second = find(submission, ' ', first + 1, true)
    priority, caller = sub(submission, 1, first - 1), second > first + 1 and sub(submission, first + 1, second - 1) or nil
  end
  if assignment then
    local first = find(assignment, ' ', 1, true)
    local second = find(assignment, ' ', first + 1, true)
    local third = find(assignment, ' ', second + 1, true)
    lease, agent_id = sub(assignment, 1, first - 1), sub(assignment, first + 1, second - 1)
    entry, has_alarm, rest = sub(assignment, second + 1, third - 1), sub(assignment, third + 1, third + 1), third + 3
  end
  return { id = id, key = key, state = values[1] or nil, submission = submission, priority = priority, caller = caller,
    assignment = assignment or nil, rest = rest, lease = lease, agent_id = agent_id, entry = entry, has_alarm = has_alarm }
end

-- Reads the rest of a task's record, which only a failure, an alarm or a cancel needs; returns the task.
local REST = {
  'releases', 'returns', 'failures', 'attempt', 'run_at', 'deadline', 'timeout', 'max_attempts', 'backoff_ms',
  'backoff_max_ms', 'started_at', 'cancel_at', 'cancel_by', 'attempts', 'queued_at',
}
local function load_rest(task)
  if task.is_complete then
    return task
  end
  local values = call('HMGET', task.key, unpack(REST))
  for i = 1, #REST do
    task[REST[i]] = values[i] or nil
  end
  local _
  if task.submission then
    _, _, task.has_extras, task.submitted_at, task.score, task.pool, task.digest = string.match(task.submission, SUBMISSION)
  end
  if task.assignment then
    _, _, _, task.term, task.attempt, task.assigned_at, task.start_by, task.timeout_at, task.placement =
      string.match(task.assignment, ASSIGNMENT)
    task.start_by = task.start_by ~= '0' and task.start_by or nil
    task.timeout_at = task.timeout_at ~= '0' and task.timeout_at or nil
  end
  task.is_complete = true
  return task
end

-- A pool has a second queue, of the tasks that a plan names. Its name is the pool's with this at its end.
local NAMED = '.named'
local function is_named(pool)
  return sub(pool, -#NAMED) == NAMED
end

local function is_held(task)
  return task.state == 'assigned' or task.state == 'running'
end
