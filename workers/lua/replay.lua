#!lua flags=allow-oom
-- Replays failed tasks on an operator's request: the same id, fresh attempts, the history of the earlier attempts is
-- kept.
-- include: base entries replies batches records tasklog tasks
-- moves: failed>queued
-- keys: task:{id} hash rw | tasks:dead zset w | in:control:{kind} stream w
-- LIMITS.head_start_urgent, head_start_critical, head_start_high, head_start_normal, head_start_low  head start in ms
-- ARGV[3]  number of requests, then for each:
--   entry | task_id | caller or ''
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: REPLAYED; DUPLICATE (by this request); NOT_FOUND; NOT_DEAD
--   (it has not failed); EXPIRED (its deadline has passed); GONE (the entry was handled before); ERROR <why> (not
--   consumed)
-- Events in log:tasks: task.replayed
check_due_types()
local STREAM = 'in:control:distributor'

local function replay(i)
  local entry, id, caller = unpack(ARGV, i, i + 2)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local task = load_task(id)
  if task.state and call('HGET', task.key, 'replay_id') == entry then
    answer(caller, STREAM, entry)
    return 'DUPLICATE'
  elseif not task.state or task.state == 'refused' then
    answer(caller, STREAM, entry, 'task_not_found', "Task '" .. id .. "' not found")
    return 'NOT_FOUND'
  elseif task.state ~= 'failed' then
    answer(caller, STREAM, entry, 'task_not_dead', "task '" .. id .. "' is " .. task.state .. '; only a failed one can be replayed')
    return 'NOT_DEAD'
  end
  load_rest(task)
  if task.deadline and tonumber(task.deadline) <= now then
    answer(caller, STREAM, entry, 'task_expired', "the deadline of task '" .. id .. "' has passed; submit it under a new id")
    return 'EXPIRED'
  end
  -- Agents that could not decode its payload may have been corrected.
  task.pool = call('HGET', task.key, 'first_pool') or task.pool
  -- Fresh attempts avoid no agent; only its preferences keep a task in the named queue.
  if is_named(task.pool) and call('HEXISTS', task.key, 'preferences') == 0 then
    task.pool = sub(task.pool, 1, -#NAMED - 1)
  end
  -- It waits as if submitted now: with the score of its first submission, many replayed tasks would overtake all
  -- others.
  task.score, task.has_extras = int(entry_ms(entry) - tonumber(LIMITS['head_start_' .. task.priority])), '1'
  enqueue(id, task.pool, task.score)
  task.state = 'queued'
  set_alarm(task)
  call('HSET', task.key, 'state', 'queued', 'submission', pack_submission(task), 'attempt', task.attempt or '0',
    'replay_id', entry, 'queued_at', int(entry_ms(entry)))
  call('HDEL', task.key, 'assignment', 'started_at', 'progress', 'progress_at', 'failures', 'releases', 'returns', 'error',
    'finished_at', 'cancel_at', 'cancel_by', 'first_pool', 'definition', 'avoid')
  gather('ZREM', P .. 'tasks:dead', id)
  move(task.priority, 'failed', 'queued')
  bump('backlog_bytes', call('HSTRLEN', task.key, 'body'))
  bump('replayed', 1)
  bump('replayed:' .. task.priority, 1)
  log_each('task.replayed', id, 'priority', task.priority)
  answer(caller, STREAM, entry)
  return 'REPLAYED'
end

return run_batch({
  group = 'distributor', stream = STREAM, at = 3, width = 3, handle = replay, finish = finish_tasks,
})
