#include "fuse/server_log.h"

#include "store/error.h"
#include "store/file.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cstdio>
#include <ctime>
#include <span>

namespace lamina::unionfs {

void ServerLog::append(std::string_view text) {
    if (store::exists(path_) && store::file_size(path_) + text.size() > kLimitBytes) {
        store::rename_durably(path_, path_ + ".old");
    }
    store::File::create_or_open(path_).append(std::as_bytes(std::span(text)));
}

void ServerLog::line(std::string_view text) noexcept {
    try {
        std::string line = fmt::format("{:%Y-%m-%dT%H:%M:%SZ} ", fmt::gmtime(std::time(nullptr)));
        for (const char letter : text.substr(0, kLineLimitBytes)) {
            line += static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f ? '?' : letter;
        }
        line += '\n';
        written_.with_lock([&](std::uint64_t& written) {
            ++written;
            if (path_.empty()) {
                std::fputs(line.c_str(), stderr);
            } else {
                append(line);
            }
        });
    } catch (const std::exception&) {
        // A log line is worth less than the request that it is about.
    }
}

}  // namespace lamina::unionfs
