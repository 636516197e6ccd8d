// Conversions between protobuf messages and the coordinator's structs that several wire*.cc share.
#pragma once

#include "coordinator/run.h"

namespace stillhouse {

namespace pb {
class EvaluationReport;
class ReportRequest;
}  // namespace pb

RunEvaluation FromProto(const pb::EvaluationReport& report);
void ToProto(const RunEvaluation& evaluation, pb::EvaluationReport* out);
RunProgress FromProto(const pb::ReportRequest& request);
void ToProto(const RunProgress& progress, pb::ReportRequest* out);

}  // namespace stillhouse
