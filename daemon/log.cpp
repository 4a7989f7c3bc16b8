#include "daemon/log.h"

#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace lamina::daemon::log {

namespace {

constexpr std::size_t kMaxFileBytes = 1 << 20;
constexpr std::size_t kOldFiles = 1;
constexpr auto kPattern = "%Y-%m-%dT%H:%M:%S.%e %l %v";

void use(std::shared_ptr<spdlog::logger> logger) {
    logger->set_pattern(kPattern);
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
}

std::string escaped(const std::string& text) {
    std::string out;
    for (const char character : text) {
        if (static_cast<unsigned char>(character) < 0x20 || character == 0x7f) {
            out += fmt::format("\\x{:02x}", static_cast<unsigned char>(character));
        } else {
            out += character;
        }
    }
    return out;
}

}  // namespace

void to_stderr() {
    use(spdlog::stderr_logger_mt("laminad"));
}

void to_file(const std::string& path) {
    spdlog::drop("laminad");
    use(spdlog::rotating_logger_mt("laminad", path, kMaxFileBytes, kOldFiles));
}

void info(const std::string& text) {
    spdlog::info(escaped(text));
}

void warning(const std::string& text) {
    spdlog::warn(escaped(text));
}

void error(const std::string& text) {
    spdlog::error(escaped(text));
}

}  // namespace lamina::daemon::log
