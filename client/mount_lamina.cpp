#include "client/mount_helper.h"

int main(int argument_count, char** arguments) {
    return lamina::client::run_mount_helper(std::vector<std::string>(arguments + 1, arguments + argument_count));
}
