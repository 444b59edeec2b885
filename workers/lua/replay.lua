#!lua flags=allow-oom
-- Sets failed tasks going again on an operator's request: the same id, fresh attempts, the story of the earlier ones kept.
-- include: base records tasklog tasks
-- moves: failed>queued
-- keys: task:{id} hash rw | tasks:dead zset w | in:control:{kind} stream w
-- ARGV[5] to ARGV[9] head start in ms of urgent, critical, high, normal and low tasks
-- ARGV[10] number of requests, then for each: entry id | task id | caller or ''
-- Returns {words, loads, pools, pools_rev, raised}. Words: REPLAYED; DUPLICATE (by this request); NOT_FOUND; NOT_DEAD
--   (it has not failed); EXPIRED (its deadline has passed); GONE (its entry was handled before); ERROR <why> (not consumed)
-- Events in log:tasks: task.replayed
prove_due()
local STREAM = 'in:control:distributor'
local HEAD_START = { urgent = ARGV[5], critical = ARGV[6], high = ARGV[7], normal = ARGV[8], low = ARGV[9] }

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
  -- It waits as if submitted now: with the score of its first submission, a replay of many would overtake everybody.
  task.score, task.more = int(entry_ms(entry) - tonumber(HEAD_START[task.priority])), '1'
  enqueue(id, task.pool, task.score)
  task.state = 'queued'
  set_alarm(task)
  call('HSET', task.key, 'state', 'queued', 'submission', pack_submission(task), 'attempt', task.attempt or '0',
    'replay_id', entry)
  call('HDEL', task.key, 'assignment', 'started_at', 'progress', 'progress_at', 'failures', 'releases', 'returns', 'error',
    'finished_at', 'cancel_at', 'cancel_by', 'first_pool', 'definition')
  gather('ZREM', P .. 'tasks:dead', id)
  move(task.priority, 'failed', 'queued')
  bump('backlog_bytes', call('HSTRLEN', task.key, 'body'))
  bump('replayed', 1)
  log_each('task.replayed', id, 'priority', task.priority)
  answer(caller, STREAM, entry)
  return 'REPLAYED'
end

local words, done = {}, {}
for i = 11, 10 + tonumber(ARGV[10]) * 3, 3 do
  local word, failed = guarded(replay, i)
  words[#words + 1] = word
  if not failed then
    done[#done + 1] = ARGV[i]
  end
end
local told = finish_tasks(words)
consume(STREAM, 'distributor', done)
return told
