-- Orders to agents. An order is a courtesy where a record or a lease decides: if it cannot be written, all else goes
--   on.
-- keys: inbox:{agent}:{lane} stream w
-- include: base

-- Puts an order into the critical lane of an agent's inbox; returns its entry id, or nil if it cannot be written.
local function order(agent_id, kind, ...)
  local entry = redis.pcall('XADD', P .. 'inbox:' .. agent_id .. ':critical', '*', 'message_type', 'coordination', 'data',
    '{}', 'order', kind, ...)
  return type(entry) == 'string' and entry or nil
end

-- Orders an agent to stop the task that it runs under a lease.
local function order_stop(agent_id, task_id, lease, reason)
  order(agent_id, 'stop_task', 'task_id', task_id, 'lease', lease, 'reason', reason)
end
