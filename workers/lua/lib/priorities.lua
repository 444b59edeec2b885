-- The change of the priority of a waiting task.
-- include: base records tasklog tasks
-- keys: task:{id} hash w
-- LIMITS.head_start_urgent, head_start_critical, head_start_high, head_start_normal, head_start_low  head start in ms
-- Events in log:tasks: task.prioritized

-- Moves a task that waits to another priority: its place in its queue is what it would be if it had been submitted with
-- that priority. Returns PRIORITIZED; SAME; or NOT_WAITING, if an agent holds it or it has ended.
local function prioritize_task(task, priority)
  if task.state ~= 'queued' and task.state ~= 'scheduled' then
    return 'NOT_WAITING'
  elseif task.priority == priority then
    return 'SAME'
  end
  load_rest(task)
  local before = task.priority
  task.score = int(tonumber(task.score) + tonumber(LIMITS['head_start_' .. before]) - tonumber(LIMITS['head_start_' .. priority]))
  task.priority = priority
  if task.state == 'queued' then
    enqueue(task.id, task.pool, task.score)
    reordered_pools[task.pool] = is_named(task.pool)
  end
  call('HSET', task.key, 'submission', pack_submission(task))
  -- `submitted` is a total that never falls: so the moves between priorities are counted beside it.
  bump(task.state .. ':' .. before, -1)
  bump(task.state .. ':' .. priority, 1)
  bump('prioritized_from:' .. before, 1)
  bump('prioritized_to:' .. priority, 1)
  log_task('task.prioritized', task.id, 'priority', priority, 'before', before)
  return 'PRIORITIZED'
end
