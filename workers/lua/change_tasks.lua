#!lua flags=allow-oom
-- Changes many tasks on an operator's request: cancels, replays or prioritizes each of them, as far as its state allows.
-- include: base entries replies batches records tasks cancels replays priorities audit
-- moves: queued>cancelled scheduled>cancelled assigned>cancelled running>cancelled failed>queued failed>cancelled
-- keys: task:{id} hash r | in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | caller or '' | action: cancel, replay or prioritize | task_ids: spaces between | priority or '' | reason |
--   before_ms: replay only tasks that had failed by then, or '' | note: JSON for the audit, without its last brace
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: OK; GONE (the entry was handled before); ERROR <why>
--   (not consumed). An answer of ok has {"done":n,"skipped":{code:n}}: how many tasks were changed, and why others not.
--   That of a cancel also has "stopping": how many of the changed tasks still run, and their agents were ordered to stop
check_due_types()
local STREAM = 'in:control:distributor'
-- The word of a task that is not changed -> why.
local SKIPPED = {
  NOT_FOUND = 'task_not_found', FINISHED = 'task_finished', NOT_DEAD = 'task_not_dead', EXPIRED = 'task_expired',
  NOT_WAITING = 'task_not_waiting', SAME = 'unchanged', LATER = 'failed_later',
}

local ACTIONS = {
  cancel = function(task, request)
    if task.state == 'cancelled' or is_held(task) and call('HEXISTS', task.key, 'cancel_at') == 1 then
      return 'SAME'
    end
    return cancel_task(task, request.reason)
  end,
  replay = function(task, request)
    if task.state ~= 'failed' then
      return 'NOT_DEAD'
    elseif request.before and tonumber(call('HGET', task.key, 'finished_at')) > request.before then
      return 'LATER'
    end
    return replay_task(task, request.entry)
  end,
  prioritize = function(task, request)
    return prioritize_task(task, request.priority)
  end,
}

local function change_task(id, request)
  local task = load_task(id)
  if not task.state or task.state == 'refused' then
    return 'NOT_FOUND'
  end
  return ACTIONS[request.action](task, request)
end

local function change_tasks(i)
  local entry, caller, action, task_ids, priority, reason, before_ms, note = unpack(ARGV, i, i + 7)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local request = { entry = entry, action = action, priority = priority, reason = reason, before = tonumber(before_ms) }
  local done, stopping, skipped = 0, 0, {}
  for id in string.gmatch(task_ids, '%S+') do
    local word, failed = guarded(change_task, id, request)
    local code = failed and 'error' or SKIPPED[word]
    if code then
      skipped[code] = (skipped[code] or 0) + 1
    else
      done = done + 1
      stopping = stopping + (word == 'STOPPING' and 1 or 0)
    end
  end
  local counts = {}
  for code, count in pairs(skipped) do
    counts[#counts + 1] = '"' .. code .. '":' .. int(count)
  end
  table.sort(counts)
  local stops = action == 'cancel' and ',"stopping":' .. int(stopping) or ''
  local effect = '"done":' .. int(done) .. stops .. ',"skipped":{' .. table.concat(counts, ',') .. '}}'
  audit(STREAM, entry, 'OK', note .. ',' .. effect)
  answer_with(caller, STREAM, entry, '{' .. effect)
  return 'OK'
end

return run_batch({
  group = 'distributor', stream = STREAM, at = 3, width = 8, handle = change_tasks, finish = finish_tasks,
})
