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
local get_request = require("resty.core.base").get_request
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

local dict = ngx.shared.gateway_bounds
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

local function remember(text, it)
    if count >= MOST_KNOWN then known, count = {}, 0 end
    known[text], count = it, count + 1
    return it
end

-- What the words after a name say. Many keys have the same ones.
local function words_of(text)
    if known[text] then return known[text] end
    local own = {}
    for word, value in string.gmatch(text, " ([%l_]+)=?(%S*)") do own[word] = value end
    for _, word in ipairs(NUMBERS) do
        -- `none` is no bound, whatever the plan says.
        if own[word] and own[word] ~= "none" then own[word] = tonumber(own[word]) end
    end
    return remember(text, {own = own})
end

-- What a link says of a key, or a plan. The text is all that it depends on, so it is read once.
function bounds.read(text)
    if known[text] then return known[text] end
    local name, words = string.match(text, "^(%S*)(.*)$")
    words = words_of(words)
    local own = words.own
    local is_bounded = next(own) and (next(own) ~= "expires" or next(own, "expires") ~= nil)
    return remember(text, {
        name = name, words = words, expires = own.expires, is_bounded = is_bounded, accounts = {}
    })
end

local function listed(models)
    if not models or models == "none" then return nil end
    local all = {}
    for name in string.gmatch(models, "[^,]+") do
        all[#all + 1], all[name] = name, true
    end
    return all
end

-- The bounds that words say, those of the plan where these have none. `plan`: what the plan's link says, if there is one.
local function effective(words, plan)
    if words.bounds and words.plan == plan then return words.bounds end
    local all, own, its = {}, words.own, plan and plan ~= "" and bounds.read(plan).words.own or {}
    for _, word in ipairs(NUMBERS) do
        local value = own[word] or its[word]
        if value ~= "none" then all[word] = value end
    end
    all.models = listed(own.models or its.models)
    all.paused = own.paused or plan == "" -- A plan that is not there bounds everything.
    all.has_tokens = all.tokens_per_minute or all.tokens_per_day or all.tokens_per_month
    words.bounds, words.plan = all, plan
    return all
end

-- What a key has at a service: its bounds now, and what its counters are called. LuaJIT compiles what each request runs
-- only without loops of few rounds, and each new name would be a text of its own.
local function account_of(key, directory, service)
    local it = key.accounts[service]
    if not it then
        local id = service .. " " .. key.name
        it = {
            id = id, tokens_per_minute = "tokens_per_minute " .. id, requests_per_minute = "requests_per_minute " .. id,
            concurrent = "concurrent " .. id, path = key.words.own.plan and directory .. "/@" .. key.words.own.plan
        }
        key.accounts[service] = it
    end
    local plan = it.path and (bounds.link(it.path) or "")
    if not it.bounds or it.plan ~= plan then it.bounds, it.plan = effective(key.words, plan), plan end
    return it
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

local today, periods = nil, {}

-- Days since 1970 of a month's first one. January and February belong to the year before, so that a leap day is a
-- year's last one.
local function first_of(year, month)
    year, month = year + math.floor((month - 3) / 12), (month - 3) % 12
    return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
        + math.floor((153 * month + 2) / 5) - 719468
end

-- What today and this month are called in the names of counters, and when they end.
local function periods_at(now)
    local day = math.floor(now / DAY_S)
    if day ~= today then
        local at = os.date("!*t", now)
        today = day
        periods = {
            day = os.date("!%Y%m%d", now), day_ends = (day + 1) * DAY_S,
            month = os.date("!%Y%m", now), month_ends = first_of(at.year, at.month + 1) * DAY_S,
        }
    end
    return periods
end

-- Sees that an account knows what its counters of today and this month are called.
local function name_counters(account, now)
    local those = periods_at(now)
    if account.periods ~= those then
        account.periods = those
        account.tokens_per_day = "tokens_per_day " .. account.id .. " " .. those.day
        account.tokens_per_month = "tokens_per_month " .. account.id .. " " .. those.month
    end
    return those
end

-- A bucket is the time when it is full again: nothing has to fill it meanwhile. `amount`: of so many a minute.
local function take(name, amount, most, now)
    local seconds = amount * MINUTE_S / most
    local idle = now - ((dict:incr(name, seconds, now) or now) - seconds)
    -- It has been full for so long. What is added is never lost, whoever else adds something now.
    if idle > 0 and dict:add("!" .. name, true, TURN_S) then dict:incr(name, idle, now) end
end

-- What was in flight at a worker that was killed is not any more. `own`: this worker's number, if it has just started
-- and an earlier one may have had the same.
local function forget_gone(own)
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

-- Notes how many requests this worker has, by their account's id, for whoever finds that it was killed (`forget_gone`).
local in_flight = {}

local function note_in_flight(account, more)
    local number = (in_flight[account.id] or 0) + more
    in_flight[account.id] = number > 0 and number or nil
    account.worker = account.worker or "worker " .. ngx.worker.pid() .. " " .. account.id
    if number > 0 then dict:set(account.worker, number) else dict:delete(account.worker) end
end

local function has_room(account, most)
    if dict:incr(account.concurrent, 1, 0) <= most then return true end
    dict:incr(account.concurrent, -1, 0)
    return false
end

local function enter(it)
    local account, most = it.account, it.bounds.concurrent
    local is_in = has_room(account, most)
    -- nginx starts no other worker in the place of one that was about to end, so nobody has looked since.
    if not is_in and dict:add("looked", true, LOOKS_EVERY_S) then
        forget_gone()
        is_in = has_room(account, most)
    end
    if not is_in then return false end
    note_in_flight(account, 1)
    it.is_in = true
    return true
end

local function leave(it)
    dict:incr(it.account.concurrent, -1, 0)
    note_in_flight(it.account, -1)
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
            dict:add(key, tonumber(number), KEPT_S)
        end
    end
    file:close()
end

-- What keys have used at other gateways, as the daemon has it in a file: a number in the first line, then lines as above.
local elsewhere, elsewhere_path, elsewhere_number, next_look = {}, nil, nil, 0

-- Reads that file, if there is another one than before. A worker looks once a second, and only for who has such bounds.
local function look_elsewhere(now)
    if now < next_look then return end
    next_look = now + 1
    local file = io.open(elsewhere_path, "r")
    if not file then return end
    local number = file:read("*l")
    if number ~= elsewhere_number then
        local found = {}
        for line in file:lines() do
            local service, name, bound, period, tokens = string.match(line, "^(%S+) (%S+) ([%l_]+) (%d+) (%d+)$")
            if service then found[table.concat({bound, service, name, period}, " ")] = tonumber(tokens) end
        end
        elsewhere, elsewhere_number = found, number
    end
    file:close()
end

-- A worker starts. `others`: the file of what was used at other gateways, if there are any.
function bounds.begin(path, others)
    elsewhere_path = others
    load(path)
    forget_gone(ngx.worker.pid())
end

-- -- judging

-- This worker's requests with bounds, each by its place in memory, which no other one has before it is over; and how
-- many there are. A variable, or `ngx.ctx`, would cost more than all else.
local live, count_live = {}, 0

local function number_of_request()
    return tonumber(ffi.cast("uintptr_t", get_request()))
end

local function of_request()
    return count_live > 0 and live[number_of_request()] or nil
end

-- What is used up as a request comes, as far as something bounds it.
local function measure(it)
    local most, account, now = it.bounds, it.account, bounds.elapsed()
    if most.tokens_per_month or most.tokens_per_day then
        local second = bounds.now()
        local those = name_counters(account, second)
        it.day_left_s, it.month_left_s = those.day_ends - second, those.month_ends - second
        if elsewhere_path then look_elsewhere(now) end
        if most.tokens_per_day then
            local name = account.tokens_per_day
            it.day_used = (dict:get(name) or 0) + (elsewhere[name] or 0)
        end
        if most.tokens_per_month then
            local name = account.tokens_per_month
            it.month_used = (dict:get(name) or 0) + (elsewhere[name] or 0)
        end
    end
    if most.tokens_per_minute then
        it.tokens_full_s = math.max(0, (dict:get(account.tokens_per_minute) or 0) - now)
    end
    if most.requests_per_minute then
        it.requests_full_s = math.max(0, (dict:get(account.requests_per_minute) or 0) - now)
    end
    return now
end

-- Why a request has to wait, and for how long; nil if it need not.
local function waits(it)
    local most, now = it.bounds, measure(it)
    local requests = most.requests_per_minute
    if most.tokens_per_month and it.month_used >= most.tokens_per_month then
        return "tokens_per_month", it.month_left_s
    end
    if most.tokens_per_day and it.day_used >= most.tokens_per_day then return "tokens_per_day", it.day_left_s end
    if most.tokens_per_minute and it.tokens_full_s >= MINUTE_S then
        return "tokens_per_minute", it.tokens_full_s - MINUTE_S
    end
    if requests then
        local left_s = it.requests_full_s - MINUTE_S + MINUTE_S / requests
        if left_s > 1e-6 then return "requests_per_minute", left_s end -- Floating-point sums are not exact.
    end
    if most.concurrent and not enter(it) then return "concurrent", 1 end
    if requests then
        take(it.account.requests_per_minute, 1, requests, now)
        it.requests_full_s = it.requests_full_s + MINUTE_S / requests
    end
    return nil
end

-- Judges a request by its key; `service` is the address that it came to.
function bounds.judge(key, directory, service)
    local number = number_of_request()
    if live[number] then return end
    local account = account_of(key, directory, service)
    local it = {account = account, bounds = account.bounds, events = 0}
    live[number], count_live = it, count_live + 1
    if it.bounds.paused then
        it.why = "paused"
    elseif COUNTED[ngx.req.get_method()] or ngx.var.http_upgrade then
        it.counts = true
        it.why, it.left_s = waits(it)
    end
    if it.why then ngx.var.gateway_out_of_bounds = "1" end
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

-- What is left of the shortest bound of tokens; as the request was let in.
local function tell_tokens(header, it)
    local most, left, reset_s = it.bounds.tokens_per_minute, nil, nil
    if most then
        left, reset_s = most * (1 - it.tokens_full_s / MINUTE_S), it.tokens_full_s
    elseif it.bounds.tokens_per_day then
        most = it.bounds.tokens_per_day
        left, reset_s = most - it.day_used, it.day_left_s
    else
        most = it.bounds.tokens_per_month
        left, reset_s = most - it.month_used, it.month_left_s
    end
    header["x-ratelimit-limit-tokens"] = string.format("%d", most)
    header["x-ratelimit-remaining-tokens"] = string.format("%d", math.max(0, math.floor(left + 1e-6)))
    header["x-ratelimit-reset-tokens"] = bounds.duration(reset_s)
end

local function tell_requests(header, it)
    local most, full_s = it.bounds.requests_per_minute, it.requests_full_s
    local left = math.floor(most * (1 - full_s / MINUTE_S) + 1e-6)
    header["x-ratelimit-limit-requests"] = string.format("%d", most)
    header["x-ratelimit-remaining-requests"] = string.format("%d", math.max(0, left))
    header["x-ratelimit-reset-requests"] = bounds.duration(full_s)
end

-- The whole answer of a request with bounds, if it is none of an error, becomes what `how` makes of it and of the models
-- that its key may use. Of one that is longer than
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
    local header = ngx.header
    if it.bounds.requests_per_minute then tell_requests(header, it) end
    if it.bounds.has_tokens then tell_tokens(header, it) end
end

local function change(it)
    local arg = ngx.arg
    if #it.text <= LONGEST_ANSWER then it.text = it.text .. arg[1] end
    arg[1] = arg[2] and it.change(it.text, it.bounds.models) or nil
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
    if not out or it.events > 0 and var.request_completion ~= "OK" then out = math.max(out or 0, it.events) end
    return (tonumber(var.gateway_tokens_in) or 0) + out
end

-- A request is over. `alone`: nobody else ends what tokens.lua has of it.
function bounds.over(alone)
    local it = of_request()
    if not it then return end
    live[number_of_request()], count_live = nil, count_live - 1
    if alone then tokens.over() end
    if it.is_in then leave(it) end
    if it.why or not it.counts or not it.bounds.has_tokens then return end
    local number, account, most = tokens_of(it), it.account, it.bounds.tokens_per_minute
    if number <= 0 then return end
    if most then take(account.tokens_per_minute, number, most, bounds.elapsed()) end
    -- Also what has no bound today: it may have one tomorrow.
    name_counters(account, bounds.now())
    dict:incr(account.tokens_per_day, number, 0, KEPT_S)
    dict:incr(account.tokens_per_month, number, 0, KEPT_S)
end

-- -- models

-- The models that the request's key may use: a list that knows its members; nil for all.
function bounds.models()
    local it = of_request()
    return it and it.bounds.models
end

return bounds
