-- The log of tasks: their events, written when everything else of the batch is done.
-- include: base
-- keys: log:tasks stream rw | counters hash rw

-- Frequent events are gathered: the events of one kind in a batch are one entry. Its fields hold the values in order,
-- separated by spaces; with one event it looks like any other entry. Such values are words: not empty, without spaces.
-- A batch has such events of one task only in the order of GATHERED.
local GATHERED = { 'task.queued', 'task.scheduled', 'task.replayed', 'task.assigned', 'task.started', 'task.completed' }
local gathered_events, log_entries = {}, {}
local function log_each(kind, id, field, value, field2, value2)
  local of_kind = gathered_events[kind]
  if not of_kind then
    of_kind = { count = 0, ids = {}, field = field, values = {}, field2 = field2, values2 = {} }
    gathered_events[kind] = of_kind
  end
  local n = of_kind.count + 1
  of_kind.count, of_kind.ids[n], of_kind.values[n], of_kind.values2[n] = n, id, value, value2
end

local function close_gathered()
  for _, kind in ipairs(GATHERED) do
    local of_kind = gathered_events[kind]
    if of_kind then
      local entry = { 'type', kind, 'task_id', table.concat(of_kind.ids, ' '), of_kind.field, table.concat(of_kind.values, ' ') }
      if of_kind.field2 then
        entry[7], entry[8] = of_kind.field2, table.concat(of_kind.values2, ' ')
      end
      entry.count = of_kind.count
      log_entries[#log_entries + 1] = entry
    end
  end
  gathered_events = {}
end

-- Logs an event with free text; it follows the events that were gathered before it.
local function log_task(kind, id, ...)
  close_gathered()
  log_entries[#log_entries + 1] = { count = 1, 'type', kind, 'task_id', id, ... }
end

-- Trims the oldest events beyond LIMITS.log_entries, by the number (seq) of each entry's last event.
local LOG_TASKS, MOST_TRIMMED = P .. 'log:tasks', 256
local function seq_of(entry)
  local fields = entry and entry[2]
  return fields and tonumber(fields[#fields]) or 0
end

local function trim_events(until_seq)
  if type(redis.pcall('XTRIM', LOG_TASKS, 'MAXLEN', '~', LIMITS.log_entries)) ~= 'number' then
    return
  end
  local first = call('XRANGE', LOG_TASKS, '-', '+', 'COUNT', 2)
  local seq = seq_of(first[1])
  if not first[2] or seq > until_seq then
    return
  end
  local each = math.max(1, seq_of(first[2]) - seq)
  local some = call('XRANGE', LOG_TASKS, '-', '+', 'COUNT', math.min(MOST_TRIMMED, math.ceil((until_seq - seq) / each) + 1))
  for i = #some, 2, -1 do
    if seq_of(some[i - 1]) <= until_seq then
      call('XTRIM', LOG_TASKS, 'MINID', some[i][1])
      break
    end
  end
end

-- Writes the entries. Like a reply, the log reports what has been done: if it cannot be written, the batch must not
-- count as failed, or dispatch would give one task to two agents. Once in 256 events, the log is trimmed.
local function write_log()
  close_gathered()
  local events = 0
  for _, entry in ipairs(log_entries) do
    events = events + entry.count
  end
  if events == 0 then
    return
  end
  local last = call('HINCRBY', P .. 'counters', 'task_events', events)
  local seq = last - events
  for _, entry in ipairs(log_entries) do
    seq = seq + entry.count
    local n = #entry
    entry[n + 1], entry[n + 2] = 'seq', int(seq)
    append_capped('log:tasks', LIMITS.log_bytes, nil, unpack(entry))
  end
  if math.floor(last / 256) ~= math.floor((last - events) / 256) then
    trim_events(last - tonumber(LIMITS.log_entries))
  end
end
