-- Who a request's key belongs to. Run by nginx for each request to a service with `frontend.auth.keys_file`.
--
-- `directory` holds one symbolic link for each key: its name is the key's SHA-256, what it points to is the key's name,
-- and where the key expires `:` and the seconds since 1970.
-- So a key is looked up with one readlink(2), a new one counts from the moment its link is there, and a revoked one
-- does not from the moment it is gone. Nothing is compared with a secret: the time it takes tells of a hash alone.

local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
unsigned char *SHA256(const unsigned char *data, size_t size, unsigned char *digest);
long readlink(const char *path, char *target, size_t size);
]]

local LONGEST_KEY = 4096
local LONGEST_NAME = 255
local digest = ffi.new("unsigned char[32]")
local target = ffi.new("char[?]", LONGEST_NAME)
local digits, hex = {}, {}
for byte = 0, 255 do digits[byte] = string.format("%02x", byte) end

local door = {}

local function sent()
    local authorization = ngx.var.http_authorization
    if authorization then
        return string.match(authorization, "^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+) *$")
    end
    return ngx.var.http_x_api_key
end

-- The name of the key that was sent, or an empty text.
function door.name_of_key(directory)
    local key = sent()
    if not key or #key > LONGEST_KEY then return "" end
    C.SHA256(key, #key, digest)
    for at = 0, 31 do hex[at + 1] = digits[digest[at]] end
    local size = tonumber(C.readlink(directory .. "/" .. table.concat(hex, "", 1, 32), target, LONGEST_NAME))
    if size <= 0 then return "" end
    local name, expires = string.match(ffi.string(target, size), "^([^:]*):?(%d*)$")
    if not name or (expires ~= "" and tonumber(expires) <= ngx.time()) then return "" end
    return name
end

return door
