#!lua flags=allow-oom
-- Settles a batch of agents' reports. A report counts only with its task's current lease.
-- include: base records tasklog tasks attempts
-- moves: assigned>running assigned>completed running>completed assigned>scheduled running>scheduled
-- moves: assigned>failed running>failed assigned>cancelled running>cancelled
-- ARGV[10] number of reports, then the runs of reports that share a kind and a caller until there are as many, each:
--   started, progressed, completed, failed, released | caller or '' | number of its reports, then for each:
--     entry id | task id | lease | ms at which it started or '' | result or progress, opaque JSON; of failed and released
--     also: code | message | 1: may be retried
-- Returns {words, loads, pools, pools_rev, raised}. Words: OK; DUPLICATE (this lease has settled, its first outcome stands);
--   STALE (the lease is not known, nothing changed); ERROR <why> (not consumed)
-- Events in log:tasks: task.started, task.progressed, task.completed, and those of the end of an attempt
local function completed(task, started, result)
  unassign(task)
  close(task, 'completed', 'result', result, 'tasks:terminal', started)
  log_each('task.completed', task.id, 'agent_id', task.agent_id)
end

local function started(task, at)
  if task.state == 'running' then
    return
  end
  load_rest(task)
  task.state = 'running'
  if task.timeout then
    task.timeout_at = int(tonumber(at) + tonumber(task.timeout))
    save_assignment(task)
  end
  set_alarm(task)
  call('HSET', task.key, 'state', 'running', 'started_at', at)
  move(task.priority, 'assigned', 'running')
  log_each('task.started', task.id, 'agent_id', task.agent_id, 'attempt', task.attempt)
end

local function settle(kind, caller, i)
  local entry, id, lease, at, data = unpack(ARGV, i, i + 4)
  local task = load_task(id)
  if task.lease ~= lease then
    if task.state and string.find(call('HGET', task.key, 'attempts') or '', lease, 1, true) then
      bump('reports_duplicate', 1)
      answer(caller, entry)
      return 'DUPLICATE'
    end
    bump('reports_stale', 1)
    answer(caller, entry, 'stale_lease', 'the lease of this task is not known; nothing changed')
    return 'STALE'
  end
  if task.state ~= 'assigned' and task.state ~= 'running' then
    bump('reports_duplicate', 1)
    answer(caller, entry)
    return 'DUPLICATE'
  end
  at = at ~= '' and at or nil
  if kind == 'completed' then
    completed(task, at, data)
  elseif kind == 'started' then
    started(task, at)
  elseif kind == 'progressed' then
    if call('HGET', task.key, 'progress') ~= data then
      call('HSET', task.key, 'progress', data)
      log_task('task.progressed', id, 'agent_id', task.agent_id, 'data', data)
    end
  else
    if at then
      load_rest(task)
      task.started_at = at
    end
    local code, message, retryable = unpack(ARGV, i + 5, i + 7)
    end_attempt(task, kind, code, message, retryable == '1')
  end
  answer(caller, entry)
  return 'OK'
end

local WIDTH = { failed = 8, released = 8 }
local kind, caller, left
local next_report, done = 11, {}
local words = guard_each(tonumber(ARGV[10]), function()
  if not left or left == 0 then
    kind, caller, left = ARGV[next_report], ARGV[next_report + 1], tonumber(ARGV[next_report + 2])
    next_report = next_report + 3
  end
  local i = next_report
  next_report, left = i + (WIDTH[kind] or 5), left - 1
  local word = settle(kind, caller, i)
  done[#done + 1] = ARGV[i]
  return word
end)
local told = finish_tasks(words)
consume('in:reports', 'distributor', done)
return told
