-- What a key may do: which models, how many requests and tokens a minute, how many tokens a day and a month, and how
-- many requests at once.
--
-- A key's link (frontends.lua) leads to its name and its bounds: `alice plan=team tokens_per_day=5000`. A plan is a link
-- beside the keys', `@team`. So a change of either counts from the next request on, and no memory has to be told of it.
--
-- A request is judged once, before it waits for anything. What it takes is in memory that all workers share: tokens as
-- soon as its answer has said them, since nobody knows them before. So a request is let in while something is left, and
-- may take more than that; the next ones wait for it.
--
-- Only what may cost tokens is counted: POST, PUT, PATCH and WebSockets. Times of the two buckets are by a clock that
-- nobody sets, days and months are UTC's.

local ffi = require "ffi"
local tokens = require "tokens"
local C = ffi.C

ffi.cdef [[
struct gateway_time { long seconds; long nanoseconds; };
int clock_gettime(int clock, struct gateway_time *time);
int kill(int pid, int signal);
long readlink(const char *path, char *target, size_t size);
int utimensat(int directory, const char *path, const struct gateway_time *times, int flags);
]]

local BOOT_TIME, WORKING_DIRECTORY, LINK_ITSELF, NO_SUCH_PROCESS = 7, -100, 0x100, 3
local LONGEST = 4096
local DAY_S, MINUTE_S = 86400, 60
local MOST_KNOWN = 50000
local LONGEST_ANSWER = 1048576 -- that becomes another one
-- An answer may end after the period in which it began, and whoever asks for a counter then finds it.
local KEPT_S = 40 * DAY_S
-- For this long nobody else brings a bucket up to date: two workers would give, or take, the same time twice.
local TURN_S = 1
-- How often somebody who is refused looks whether workers have been killed: with 40,000 keys it takes some milliseconds.
local LOOKS_EVERY_S = 5
local COUNTED = {POST = true, PUT = true, PATCH = true}
-- The text of one piece of an answer, in the words of all the APIs; an event has one for each choice.
local CONTENT = [=["(?:content|text|delta|reasoning_content|reasoning|thinking|arguments|partial_json)"\s*:\s*"[^"]]=]
local NUMBERS = {
    "tokens_per_minute", "tokens_per_day", "tokens_per_month", "requests_per_minute", "concurrent", "expires"
}

local target = ffi.new("char[?]", LONGEST)
local clock = ffi.new("struct gateway_time")

local bounds = {}

-- Seconds since 1970, and seconds of a clock that nobody sets; a test has its own.
bounds.now = ngx.now
function bounds.elapsed()
    C.clock_gettime(BOOT_TIME, clock)
    return tonumber(clock.seconds) + tonumber(clock.nanoseconds) / 1e9
end

-- -- what links say

-- The text that a link leads to; nil if there is none.
function bounds.link(path)
    local size = tonumber(C.readlink(path, target, LONGEST))
    return size > 0 and size < LONGEST and ffi.string(target, size) or nil
end

local known, count = {}, 0

-- What a link says of a key, or a plan. The text is all that it depends on, so it is read once.
function bounds.read(text)
    local it = known[text]
    if it then return it end
    it = {name = string.match(text, "^%S*"), own = {}}
    for word, value in string.gmatch(text, " ([%l_]+)=?(%S*)") do it.own[word] = value end
    for _, word in ipairs(NUMBERS) do
        -- `none` is no bound, whatever the plan says.
        if it.own[word] and it.own[word] ~= "none" then it.own[word] = tonumber(it.own[word]) end
    end
    it.expires = it.own.expires
    it.is_bounded = next(it.own) and (next(it.own) ~= "expires" or next(it.own, "expires") ~= nil)
    if count >= MOST_KNOWN then known, count = {}, 0 end
    known[text], count = it, count + 1
    return it
end

local function listed(models)
    if not models or models == "none" then return nil end
    local all = {}
    for name in string.gmatch(models, "[^,]+") do
        all[#all + 1], all[name] = name, true
    end
    return all
end

-- A key's bounds, those of its plan where it has none of its own.
local function effective(key, directory)
    local text = key.own.plan and (bounds.link(directory .. "/@" .. key.own.plan) or "") or nil
    if key.all and key.plan == text then return key.all end
    local all, plan = {}, text and bounds.read(text).own or {}
    for _, word in ipairs(NUMBERS) do
        local value = key.own[word] or plan[word]
        if value ~= "none" then all[word] = value end
    end
    all.models = listed(key.own.models or plan.models)
    all.paused = key.own.paused or text == "" -- A plan that is not there bounds everything.
    all.has_tokens = all.tokens_per_minute or all.tokens_per_day or all.tokens_per_month
    key.all, key.plan = all, text
    return all
end

-- -- when it was used

local noted, noted_at = {}, 0

-- Notes that a key is used, as its link's time. A worker does so once a minute.
function bounds.note_use(path)
    local minute = math.floor(ngx.time() / MINUTE_S)
    if minute ~= noted_at then noted, noted_at = {}, minute end
    if noted[path] then return end
    noted[path] = true
    C.utimensat(WORKING_DIRECTORY, path, nil, LINK_ITSELF)
end

-- -- counters

local day, names = nil, {}

-- Days since 1970 of a month's first one. January and February belong to the year before, so that a leap day is a
-- year's last one.
local function first_of(year, month)
    year, month = year + math.floor((month - 3) / 12), (month - 3) % 12
    return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
        + math.floor((153 * month + 2) / 5) - 719468
end

-- What counters of today and this month are called, and when these end.
local function periods(now)
    local today = math.floor(now / DAY_S)
    if today ~= day then
        local at = os.date("!*t", now)
        day = today
        names = {
            tokens_per_day = {os.date("!%Y%m%d", now), (today + 1) * DAY_S},
            tokens_per_month = {os.date("!%Y%m", now), first_of(at.year, at.month + 1) * DAY_S},
        }
    end
    return names
end

local function counter(it, bound, now)
    local period = periods(now)[bound]
    return bound .. " " .. it.id .. " " .. period[1], period[2]
end

-- A bucket is the time when it is full again: nothing has to fill it meanwhile.
local function until_full(it, bound)
    return math.max(0, (ngx.shared.gateway_bounds:get(bound .. " " .. it.id) or 0) - bounds.elapsed())
end

local function take(it, bound, amount)
    local dict, key, now = ngx.shared.gateway_bounds, bound .. " " .. it.id, bounds.elapsed()
    local seconds = amount * MINUTE_S / it.bounds[bound]
    local at = dict:get(key)
    -- Full since then. What is added is never lost, whoever else adds something now.
    if at and at < now and dict:add("!" .. key, true, TURN_S) then seconds = seconds + now - at end
    dict:incr(key, seconds, now)
end

local function worker_key(it)
    return "worker " .. ngx.worker.pid() .. " " .. it.id
end

-- What was in flight at a worker that was killed is not any more. `own`: this worker's number, if it has just started
-- and an earlier one may have had the same.
local function forget_gone(own)
    local dict = ngx.shared.gateway_bounds
    for _, key in ipairs(dict:get_keys(0)) do
        local pid, id = string.match(key, "^worker (%d+) (.*)$")
        pid = tonumber(pid)
        if pid and (pid == own or C.kill(pid, 0) ~= 0 and ffi.errno() == NO_SUCH_PROCESS) then
            local number = dict:get(key)
            -- Of two workers that look at once only one may take it off.
            if number and dict:add("gone " .. pid .. " " .. id, true, MINUTE_S) then
                dict:incr("concurrent " .. id, -number, 0)
                dict:delete(key)
            end
        end
    end
end

local function has_room(it)
    local dict = ngx.shared.gateway_bounds
    if dict:incr("concurrent " .. it.id, 1, 0) <= it.bounds.concurrent then return true end
    dict:incr("concurrent " .. it.id, -1, 0)
    return false
end

local function enter(it)
    local dict, is_in = ngx.shared.gateway_bounds, has_room(it)
    -- nginx starts no other worker in the place of one that was about to end, so nobody has looked since.
    if not is_in and dict:add("looked", true, LOOKS_EVERY_S) then
        forget_gone()
        is_in = has_room(it)
    end
    if not is_in then return false end
    dict:incr(worker_key(it), 1, 0)
    it.is_in = true
    return true
end

local function leave(it)
    local dict = ngx.shared.gateway_bounds
    dict:incr("concurrent " .. it.id, -1, 0)
    if dict:incr(worker_key(it), -1, 0) <= 0 then dict:delete(worker_key(it)) end
end

-- Counts what was used before this nginx began, as the daemon has it in a file: a service, a key's name, a bound, a
-- period and a number in each line. What is counted already stays.
local function load(path)
    local file = io.open(path, "r")
    if not file then return end
    for line in file:lines() do
        local service, name, bound, period, number = string.match(line, "^(%S+) (%S+) ([%l_]+) (%d+) (%d+)$")
        if service then
            local key = table.concat({bound, service, name, period}, " ")
            ngx.shared.gateway_bounds:add(key, tonumber(number), KEPT_S)
        end
    end
    file:close()
end

-- A worker starts.
function bounds.begin(path)
    load(path)
    forget_gone(ngx.worker.pid())
end

-- -- judging

-- This worker's requests with bounds, each by the number that its variable has; and how many there are. Where there are
-- none, nobody has to ask for a variable, which costs more than all else.
local live, last, count_live = {}, 0, 0

local function of_request()
    if count_live == 0 then return nil end
    local number = ngx.var.gateway_bounds
    return number and number ~= "" and live[number] or nil
end

-- Why a request has to wait, and for how long; nil if it need not.
local function waits(it)
    local now = bounds.now()
    for _, bound in ipairs {"tokens_per_month", "tokens_per_day"} do
        local most = it.bounds[bound]
        if most then
            local key, ends = counter(it, bound, now)
            if (ngx.shared.gateway_bounds:get(key) or 0) >= most then return bound, ends - now end
        end
    end
    if it.bounds.tokens_per_minute then
        local left_s = until_full(it, "tokens_per_minute") - MINUTE_S
        if left_s >= 0 then return "tokens_per_minute", left_s end
    end
    local most = it.bounds.requests_per_minute
    if most then
        local left_s = until_full(it, "requests_per_minute") - MINUTE_S + MINUTE_S / most
        if left_s > 1e-6 then return "requests_per_minute", left_s end -- Floating-point sums are not exact.
    end
    if it.bounds.concurrent and not enter(it) then return "concurrent", 1 end
    if most then take(it, "requests_per_minute", 1) end
    return nil
end

-- Judges a request by its key; `service` is the address that it came to.
function bounds.judge(key, directory, service)
    local var = ngx.var
    if var.gateway_bounds ~= "" then return end
    local it = {bounds = effective(key, directory), id = service .. " " .. key.name, events = 0}
    last = last + 1
    local number = tostring(last)
    it.number = number
    live[number], count_live, var.gateway_bounds = it, count_live + 1, number
    if it.bounds.paused then
        it.why = "paused"
    elseif COUNTED[ngx.req.get_method()] or var.http_upgrade then
        it.counts = true
        it.why, it.left_s = waits(it)
    end
    if it.why then var.gateway_out_of_bounds = "1" end
end

-- -- answers

-- As Go writes a duration, and OpenAI with it: 0s, 120ms, 2.5s, 6m0s, 26h3m10s.
function bounds.duration(seconds)
    local ms = math.ceil(seconds * 1000 - 1e-6)
    if ms <= 0 then return "0s" end
    if ms < 1000 then return ms .. "ms" end
    local text = string.format("%gs", ms / 1000 % 60)
    local minutes = math.floor(ms / 60000)
    if minutes == 0 then return text end
    text = minutes % 60 .. "m" .. text
    return minutes < 60 and text or math.floor(minutes / 60) .. "h" .. text
end

local function shown(number)
    local text = string.format("%d", number)
    return (string.gsub(string.reverse(string.gsub(string.reverse(text), "(%d%d%d)", "%1,")), "^,", ""))
end

local WORDS = {
    tokens_per_minute = {"tokens per minute", "tokens", "rate_limit_exceeded"},
    tokens_per_day = {"tokens per day (UTC)", "insufficient_quota", "insufficient_quota"},
    tokens_per_month = {"tokens per month (UTC)", "insufficient_quota", "insufficient_quota"},
    requests_per_minute = {"requests per minute", "requests", "rate_limit_exceeded"},
    concurrent = {"requests at the same time", "requests", "rate_limit_exceeded"},
}

local function answer(status, kind, code, param, message)
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.print(string.format(
        '{"error": {"message": "%s", "type": "%s", "param": %s, "code": "%s"}}', message, kind, param, code
    ))
end

-- Answers a request that has been refused.
function bounds.refuse()
    local it = of_request()
    if it.why == "paused" then
        local message = "This API key is paused. Ask whoever gave it to you."
        return answer(403, "invalid_request_error", "key_paused", "null", message)
    end
    local words, most = WORDS[it.why], it.bounds[it.why]
    local ends = it.why == "concurrent" and "when one of them has ended"
        or string.format(
            "in %s, at %s", bounds.duration(it.left_s), os.date("!%Y-%m-%dT%H:%M:%SZ", math.ceil(bounds.now() + it.left_s))
        )
    ngx.header["Retry-After"] = math.max(1, math.ceil(it.left_s))
    -- A client that tries again by itself has no use of it for hours.
    if words[3] == "insufficient_quota" then ngx.header["x-should-retry"] = "false" end
    return answer(429, words[2], words[3], "null", string.format(
        "Rate limit reached for this API key: %s %s. Try again %s.", shown(most), words[1], ends
    ))
end

-- The bound that a kind of header tells: the shortest that there is.
local function told(it, kind, most, remaining, reset_s)
    local header = ngx.header
    header["x-ratelimit-limit-" .. kind] = string.format("%d", most)
    header["x-ratelimit-remaining-" .. kind] = string.format("%d", math.max(0, math.floor(remaining + 1e-6)))
    header["x-ratelimit-reset-" .. kind] = bounds.duration(reset_s)
end

local function tell_bucket(it, kind, bound)
    local most, full_s = it.bounds[bound], until_full(it, bound)
    told(it, kind, most, most * (1 - full_s / MINUTE_S), full_s)
end

-- The whole answer of a request with bounds, if it is none of an error, becomes another one. Of one that is longer than
-- `LONGEST_ANSWER` only the beginning is looked at.
function bounds.change_answer(how)
    local it = of_request()
    it.change, it.text = how, ""
end

-- An answer's head passes.
function bounds.tell()
    local it = of_request()
    if not it then return end
    if it.change then
        if ngx.status == 200 then
            ngx.header.content_length, ngx.header.content_encoding = nil, nil
        else
            it.change = nil
        end
    end
    if not it.counts then return end
    if it.bounds.requests_per_minute then tell_bucket(it, "requests", "requests_per_minute") end
    if it.bounds.tokens_per_minute then return tell_bucket(it, "tokens", "tokens_per_minute") end
    local bound = it.bounds.tokens_per_day and "tokens_per_day" or "tokens_per_month"
    local most = it.bounds[bound]
    if not most then return end
    local now = bounds.now()
    local key, ends = counter(it, bound, now)
    told(it, "tokens", most, most - (ngx.shared.gateway_bounds:get(key) or 0), ends - now)
end

local function change(it)
    local arg = ngx.arg
    if #it.text <= LONGEST_ANSWER then it.text = it.text .. arg[1] end
    arg[1] = arg[2] and it.change(it.text) or nil
end

-- A piece of an answer passes. `is_read`: what it says of tokens is read by somebody else.
function bounds.answers(is_read)
    local it = of_request()
    if not it then return end
    if it.change then return change(it) end
    if not it.counts or not it.bounds.has_tokens then return end
    local piece, at = ngx.arg[1], {pos = 1}
    if it.is_stream == nil then
        local kind = ngx.var.sent_http_content_type
        it.is_stream = kind ~= nil and string.sub(kind, 1, 17) == "text/event-stream"
    end
    -- Text in an answer in one piece may be the client's own: a reranker repeats its documents.
    if it.is_stream and piece ~= "" then
        while ngx.re.find(piece, CONTENT, "jo", at) do it.events = it.events + 1 end
    end
    if not is_read then tokens.answers() end
end

-- How many tokens it took. A stream that does not say it, or is cut off before, has at least one in each event.
local function tokens_of(it)
    local var = ngx.var
    local out = tonumber(var.gateway_tokens_out)
    if not out or var.request_completion ~= "OK" then out = math.max(out or 0, it.events) end
    return (tonumber(var.gateway_tokens_in) or 0) + out
end

-- A request is over. `alone`: nobody else ends what tokens.lua has of it.
function bounds.over(alone)
    local it = of_request()
    if not it then return end
    live[it.number], count_live = nil, count_live - 1
    if alone then tokens.over() end
    if it.is_in then leave(it) end
    if it.why or not it.counts or not it.bounds.has_tokens then return end
    local number = tokens_of(it)
    if number <= 0 then return end
    if it.bounds.tokens_per_minute then take(it, "tokens_per_minute", number) end
    local now = bounds.now()
    for _, bound in ipairs {"tokens_per_day", "tokens_per_month"} do
        -- Also what has no bound today: it may have one tomorrow.
        ngx.shared.gateway_bounds:incr((counter(it, bound, now)), number, 0, KEPT_S)
    end
end

-- -- models

-- The models that the request's key may use: a list that knows its members; nil for all.
function bounds.models()
    local it = of_request()
    return it and it.bounds.models
end

return bounds
