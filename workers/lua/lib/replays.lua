-- The replay of a failed task, for every script that can replay one on request.
-- include: base batches records tasklog tasks
-- keys: task:{id} hash rw | tasks:dead zset w
-- LIMITS.head_start_urgent, head_start_critical, head_start_high, head_start_normal, head_start_low  head start in ms
-- Events in log:tasks: task.replayed

-- Replays a failed task on the request of an entry. Returns REPLAYED; or EXPIRED, if its deadline has passed.
local function replay_task(task, entry)
  load_rest(task)
  if task.deadline and tonumber(task.deadline) <= now then
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
  enqueue(task.id, task.pool, task.score)
  task.state = 'queued'
  set_alarm(task)
  call('HSET', task.key, 'state', 'queued', 'submission', pack_submission(task), 'attempt', task.attempt or '0',
    'replay_id', entry, 'queued_at', int(entry_ms(entry)))
  call('HDEL', task.key, 'assignment', 'started_at', 'progress', 'progress_at', 'failures', 'releases', 'returns', 'error',
    'finished_at', 'cancel_at', 'cancel_by', 'first_pool', 'definition', 'avoid')
  gather('ZREM', P .. 'tasks:dead', task.id)
  move(task.priority, 'failed', 'queued')
  bump('backlog_bytes', call('HSTRLEN', task.key, 'body'))
  bump('replayed', 1)
  bump('replayed:' .. task.priority, 1)
  log_each('task.replayed', task.id, 'priority', task.priority)
  return 'REPLAYED'
end
