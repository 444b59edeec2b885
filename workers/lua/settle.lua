#!lua flags=allow-oom
-- Settles a batch of agents' reports. A report counts only with its task's current lease.
-- include: base entries capped replies batches records tasklog tasks ends attempts histograms
-- moves: assigned>running assigned>completed running>completed assigned>scheduled running>scheduled
-- moves: assigned>failed running>failed assigned>cancelled running>cancelled assigned>expired running>expired
-- keys: task:{id} hash rw | tasks:terminal zset w | in:reports stream w | log:progress stream w
-- ARGV[3]  number of reports, then runs of reports that share a kind and a caller, until there are as many, each:
--   started, progressed, completed, failed, released or refused | caller or '' | entry id, if one entry holds them
--   all, or ''
--   | number of its reports, then for each:
--     entry id, if each has its own | task id | lease | ms at which it started or '' | result, progress or detail of a
--     failure, opaque JSON
--     of failed, released and refused also: code | message | 1: may be retried
--     of refused also: pool | definition (opaque JSON)
-- A refused task is released into that pool, where agents that cannot decode its payload, or have no handler for it, do
-- not get it. A result that was reported after its task's deadline expires the task. A release with the code draining,
-- no_slot or unreachable suspends its agent.
-- An entry that holds several reports is consumed, and its caller answered, when all of them are settled.
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: OK; DUPLICATE (this lease has settled, its first outcome
--   stays); STALE (the lease is not known, nothing changed); GONE (the entry was handled before); ERROR <why> (not
--   consumed)
-- Events in log:tasks: task.started, task.completed, and those of the end of an attempt
-- Histograms: distribution, from the assignment to the start by the agent; run:completed and those of the end of an
--   attempt, from there to the report
-- Events in log:progress: task.progressed, at most one for each task and second. The record has every value; the event
--   has a value of up to 1 KiB as `data`, of a larger one only its `bytes`
local STREAM = 'in:reports'
-- Codes of releases after which the agent would return the next task as well.
local SUSPENDS = { draining = true, no_slot = true, unreachable = true }

-- Returns true if a result was reported after its task's deadline; at the deadline it still counts.
local function is_too_late(task, entry)
  load_rest(task)
  return task.deadline and entry_ms(entry) > tonumber(task.deadline)
end

-- The last entry, and the time at which it was appended; many reports share an entry.
local last_entry, reported_at
local function reported_ms(entry)
  if entry ~= last_entry then
    last_entry, reported_at = entry, (entry_ms(entry))
  end
  return reported_at
end

local distributions, runs = observations('distribution'), observations('run:completed')
local function completed(task, entry, started, result)
  local begun = started or task.started_at or task.state == 'running' and call('HGET', task.key, 'started_at')
  local ran, waited
  if begun then
    ran = reported_ms(entry) - begun
    local assigned = task.state == 'assigned' and assigned_at(task)
    waited = assigned and begun - assigned
  end
  unassign(task)
  close(task, 'completed', 'result', result, 'tasks:terminal', started)
  if ran then
    runs[ran] = (runs[ran] or 0) + 1
  end
  if waited then
    distributions[waited] = (distributions[waited] or 0) + 1
  end
  log_each('task.completed', task.id, 'agent_id', task.agent_id)
end

local function started(task, at)
  if task.state == 'running' then
    return
  end
  load_rest(task)
  task.state = 'running'
  if task.timeout then
    task.timeout_at = int(attempt_time(tonumber(at)) + tonumber(task.timeout))
    save_assignment(task)
  end
  if task.has_alarm ~= '0' then
    set_alarm(task)
  end
  call('HSET', task.key, 'state', 'running', 'started_at', at)
  observe('distribution', at - task.assigned_at)
  move(task.priority, 'assigned', 'running')
  log_each('task.started', task.id, 'agent_id', task.agent_id, 'attempt', task.attempt)
end

-- Records the progress of a task. The log is for observers: its events are few and small; the record has the newest
-- value.
local PROGRESS_EVERY, PROGRESS_INLINE = 1000, 1024
local function progressed(task, data)
  local before = call('HMGET', task.key, 'progress', 'progress_at')
  if before[1] == data then
    return
  end
  local since = now - tonumber(before[2] or 0)
  if since >= 0 and since < PROGRESS_EVERY then
    call('HSET', task.key, 'progress', data)
    return
  end
  call('HSET', task.key, 'progress', data, 'progress_at', NOW)
  local is_small = #data <= PROGRESS_INLINE
  log('log:progress', 'type', 'task.progressed', 'task_id', task.id, 'agent_id', task.agent_id,
    is_small and 'data' or 'bytes', is_small and data or int(#data))
end

-- Makes a task wait in another pool from now on; a replay takes it back to the first one. In a named queue it stays named:
-- a plan must see what it prefers or avoids.
local function redirect(task, pool, definition)
  load_rest(task)
  call('HSETNX', task.key, 'first_pool', task.pool)
  call('HSET', task.key, 'definition', definition)
  task.pool = is_named(task.pool) and not is_named(pool) and pool .. NAMED or pool
end

local function settle(kind, caller, entry, i)
  local id, lease, at, data = unpack(ARGV, i, i + 3)
  local task = load_task(id)
  if task.lease ~= lease then
    if task.state and string.find(call('HGET', task.key, 'attempts') or '', lease, 1, true) then
      bump('reports_duplicate', 1)
      answer(caller, STREAM, entry)
      return 'DUPLICATE'
    end
    bump('reports_stale', 1)
    answer(caller, STREAM, entry, 'stale_lease', 'the lease of this task is not known; nothing changed')
    return 'STALE'
  end
  if task.state ~= 'assigned' and task.state ~= 'running' then
    bump('reports_duplicate', 1)
    answer(caller, STREAM, entry)
    return 'DUPLICATE'
  end
  if task.has_alarm ~= '0' or kind == 'failed' or kind == 'released' or kind == 'refused' then
    check_due_types()
  end
  at = at ~= '' and at or nil
  if kind == 'completed' and task.has_alarm ~= '0' and is_too_late(task, entry) then
    task.started_at = at or task.started_at
    end_attempt(task, 'expired', 'task_expired', 'its deadline passed', false, nil, reported_ms(entry))
  elseif kind == 'completed' then
    completed(task, entry, at, data)
  elseif kind == 'started' then
    started(task, at)
  elseif kind == 'progressed' then
    progressed(task, data)
  else
    if at then
      load_rest(task)
      observe('distribution', task.state == 'assigned' and at - task.assigned_at)
      task.started_at = at
    end
    local code, message, retryable = unpack(ARGV, i + 4, i + 6)
    if SUSPENDS[code] and kind == 'released' then
      suspend(task.agent_id)
    end
    if kind == 'refused' then
      redirect(task, ARGV[i + 7], ARGV[i + 8])
      kind = 'released'
    end
    local detail = kind == 'failed' and data or nil
    end_attempt(task, kind, code, message, retryable == '1', detail, reported_ms(entry))
  end
  answer(caller, STREAM, entry)
  return 'OK'
end

local WIDTH = { failed = 7, released = 7, refused = 9 }
local run = { left = 0 }
local at, done = 4, {}
local words = guard_each(tonumber(ARGV[3]), function()
  if run.left == 0 then
    local kind, caller, shared, count = unpack(ARGV, at, at + 3)
    run = { kind = kind, caller = caller, shared = shared ~= '' and shared or nil, left = tonumber(count), failing = 0 }
    at = at + 4
  end
  local entry = run.shared
  if not entry then
    entry = ARGV[at]
    at = at + 1
  end
  local i = at
  at, run.left = i + (WIDTH[run.kind] or 4), run.left - 1
  if not run.shared then
    local word = is_present(STREAM, entry) and settle(run.kind, run.caller, entry, i) or 'GONE'
    done[#done + 1] = entry
    return word
  end
  run.failing = run.failing + 1
  if run.is_present == nil then
    run.is_present = is_present(STREAM, entry)
  end
  local word = run.is_present and settle(run.kind, '', entry, i) or 'GONE'
  run.failing = run.failing - 1
  if run.left == 0 and run.failing == 0 then
    if word ~= 'GONE' then
      answer(run.caller, STREAM, entry)
    end
    done[#done + 1] = entry
  end
  return word
end)
return close_batch(finish_tasks, words, 'distributor', { [STREAM] = done })
