#!lua flags=allow-oom
-- Changes live settings, which distributors follow while they run, or resets them to what holds otherwise: for the
-- tasks of a type the value of the cell, for the cell the distributors' environment.
-- include: base entries capped replies batches audit
-- keys: settings hash rw | log:control stream w | in:control:{kind} stream w
-- ARGV[3]  number of settings, then for each:
--   entry | caller or '' | name | task_type, '' for all | value, or '' to reset | by: who sets it, or ''
-- LIMITS.live_settings  maximum number of values
-- Returns {words}. Words: OK; FULL (refused); GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:control: setting.changed, unless it had this value
local STREAM = 'in:control:distributor'
local FULL = ' values of settings are kept at most; reset some first: coord strategy show lists them'

local function configure(i)
  local entry, caller, name, task_type, value, by = unpack(ARGV, i, i + 5)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local field = task_type == '' and name or name .. ':' .. task_type
  local before = call('HGET', P .. 'settings', field)
  if value == '' then
    call('HDEL', P .. 'settings', field)
  elseif not before and call('HLEN', P .. 'settings') >= tonumber(LIMITS.live_settings) then
    answer(caller, STREAM, entry, 'config_invalid', LIMITS.live_settings .. FULL)
    return 'FULL'
  else
    call('HSET', P .. 'settings', field, value)
  end
  before = before or ''
  if value ~= before then
    log(
      'log:control', 'type', 'setting.changed', 'name', name, 'task_type', task_type, 'value', value,
      'before', before, 'by', by, 'caller', caller
    )
  end
  answer(caller, STREAM, entry)
  return 'OK'
end

return run_batch({ group = 'distributor', stream = STREAM, at = 3, width = 6, handle = configure, audit = audit })
