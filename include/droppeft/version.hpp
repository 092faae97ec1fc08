#pragma once

// The build system reads the version from these three lines.
#define DROPPEFT_VERSION_MAJOR 0
#define DROPPEFT_VERSION_MINOR 1
#define DROPPEFT_VERSION_PATCH 0
