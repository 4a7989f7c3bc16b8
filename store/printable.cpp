#include "store/printable.h"

namespace lamina::store {

std::string quote(std::string_view text, std::size_t limit_bytes) {
    constexpr std::string_view hex = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : text.substr(0, limit_bytes)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f && c != '"' && c != '\\') {
            out += c;
        } else if (c == '"' || c == '\\') {
            out += {'\\', c};
        } else {
            out += {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
        }
    }
    out += text.size() > limit_bytes ? "...\"" : "\"";
    return out;
}

}  // namespace lamina::store
