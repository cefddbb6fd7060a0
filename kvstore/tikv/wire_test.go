package tikv

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/tikv/client-go/v2/tikvrpc"
	pd "github.com/tikv/pd/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// The mock behind sockets: a PD and the stores of a cluster, as much of them as this
// driver needs, for the client as it is in use, with its connections.

// wireServer is one process of the cluster on a port of its own.
type wireServer struct {
	t        testing.TB
	addr     string
	register func(*grpc.Server)
	srv      *grpc.Server
}

func listen(t testing.TB, register func(addr string) func(*grpc.Server)) *wireServer {
	t.Helper()
	s := &wireServer{t: t, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(storetest.FreePort(t, 0)))}
	s.register = register(s.addr)
	s.start()
	t.Cleanup(func() { s.srv.Stop() })
	return s
}

// stop ends the process: connections break, new ones are refused.
func (s *wireServer) stop() { s.srv.Stop() }

// start starts it, also again.
func (s *wireServer) start() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, health.NewServer())
	s.register(srv)
	s.srv = srv
	go func() { _ = srv.Serve(l) }() // which closes l
}

// serveStores puts a server at the address of each of the mock's stores. The client asks
// them whether they are well, also if requests go straight to the mock.
func (m *mock) serveStores(t testing.TB, ids []uint64) {
	for _, id := range ids {
		s := listen(t, func(addr string) func(*grpc.Server) {
			return func(srv *grpc.Server) { tikvpb.RegisterTikvServer(srv, &wireStore{m: m, addr: addr}) }
		})
		m.cluster.UpdateStoreAddr(id, s.addr)
		m.stores = append(m.stores, s)
	}
}

// servePD puts a PD in front of the mock's and returns its address, by which users open
// a store.
func servePD(t testing.TB, directory pd.Client) string {
	t.Helper()
	return listen(t, func(addr string) func(*grpc.Server) {
		return func(srv *grpc.Server) {
			pdpb.RegisterPDServer(srv, &wirePD{directory: directory, url: "http://" + addr})
		}
	}).addr
}

// wireStore is a store's side of the protocol.
type wireStore struct {
	tikvpb.UnimplementedTikvServer
	m    *mock
	addr string
}

// call has the mock execute a request.
func call[Response any](ctx context.Context, s *wireStore, kind tikvrpc.CmdType, req any, at *kvrpcpb.Context) (out Response, err error) {
	resp, err := s.m.SendRequest(ctx, s.addr, tikvrpc.NewRequest(kind, req, *at), time.Minute)
	if err != nil {
		return out, status.Error(codes.Unavailable, err.Error())
	}
	return resp.Resp.(Response), nil
}

// RawCompareAndSwap implements tikvpb.TikvServer: the one command that goes alone.
func (s *wireStore) RawCompareAndSwap(ctx context.Context, r *kvrpcpb.RawCASRequest) (*kvrpcpb.RawCASResponse, error) {
	return call[*kvrpcpb.RawCASResponse](ctx, s, tikvrpc.CmdRawCompareAndSwap, r, r.Context)
}

// BatchCommands implements tikvpb.TikvServer.
func (s *wireStore) BatchCommands(stream tikvpb.Tikv_BatchCommandsServer) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		out := &tikvpb.BatchCommandsResponse{RequestIds: in.RequestIds}
		for _, r := range in.Requests {
			resp, err := s.command(stream.Context(), r)
			if err != nil {
				return err
			}
			out.Responses = append(out.Responses, resp)
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

// command executes one request of a batch.
func (s *wireStore) command(ctx context.Context, r *tikvpb.BatchCommandsRequest_Request) (*tikvpb.BatchCommandsResponse_Response, error) {
	out := &tikvpb.BatchCommandsResponse_Response{}
	var err error
	switch c := r.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_Empty:
		out.Cmd = &tikvpb.BatchCommandsResponse_Response_Empty{Empty: &tikvpb.BatchCommandsEmptyResponse{TestId: c.Empty.TestId}}
	case *tikvpb.BatchCommandsRequest_Request_RawGet:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawGet{}
		cmd.RawGet, err = call[*kvrpcpb.RawGetResponse](ctx, s, tikvrpc.CmdRawGet, c.RawGet, c.RawGet.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawBatchGet:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawBatchGet{}
		cmd.RawBatchGet, err = call[*kvrpcpb.RawBatchGetResponse](ctx, s, tikvrpc.CmdRawBatchGet, c.RawBatchGet, c.RawBatchGet.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawPut:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawPut{}
		cmd.RawPut, err = call[*kvrpcpb.RawPutResponse](ctx, s, tikvrpc.CmdRawPut, c.RawPut, c.RawPut.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawBatchPut:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawBatchPut{}
		cmd.RawBatchPut, err = call[*kvrpcpb.RawBatchPutResponse](ctx, s, tikvrpc.CmdRawBatchPut, c.RawBatchPut, c.RawBatchPut.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawDelete:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawDelete{}
		cmd.RawDelete, err = call[*kvrpcpb.RawDeleteResponse](ctx, s, tikvrpc.CmdRawDelete, c.RawDelete, c.RawDelete.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawBatchDelete:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawBatchDelete{}
		cmd.RawBatchDelete, err = call[*kvrpcpb.RawBatchDeleteResponse](ctx, s, tikvrpc.CmdRawBatchDelete, c.RawBatchDelete, c.RawBatchDelete.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawDeleteRange:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawDeleteRange{}
		cmd.RawDeleteRange, err = call[*kvrpcpb.RawDeleteRangeResponse](ctx, s, tikvrpc.CmdRawDeleteRange, c.RawDeleteRange, c.RawDeleteRange.Context)
		out.Cmd = cmd
	case *tikvpb.BatchCommandsRequest_Request_RawScan:
		cmd := &tikvpb.BatchCommandsResponse_Response_RawScan{}
		cmd.RawScan, err = call[*kvrpcpb.RawScanResponse](ctx, s, tikvrpc.CmdRawScan, c.RawScan, c.RawScan.Context)
		out.Cmd = cmd
	default:
		err = status.Errorf(codes.Unimplemented, "%T", c)
	}
	return out, err
}

// wirePD is PD's side of the protocol, without time.
type wirePD struct {
	pdpb.UnimplementedPDServer
	directory pd.Client
	url       string
}

func header() *pdpb.ResponseHeader { return &pdpb.ResponseHeader{ClusterId: 1} }

// GetMembers implements pdpb.PDServer.
func (s *wirePD) GetMembers(context.Context, *pdpb.GetMembersRequest) (*pdpb.GetMembersResponse, error) {
	me := &pdpb.Member{Name: "pd", MemberId: 1, ClientUrls: []string{s.url}}
	return &pdpb.GetMembersResponse{Header: header(), Members: []*pdpb.Member{me}, Leader: me, EtcdLeader: me}, nil
}

func region(r *pd.Region, err error) (*pdpb.GetRegionResponse, error) {
	if err != nil {
		return nil, err
	}
	return &pdpb.GetRegionResponse{Header: header(), Region: r.Meta, Leader: r.Leader}, nil
}

// GetRegion implements pdpb.PDServer.
func (s *wirePD) GetRegion(ctx context.Context, r *pdpb.GetRegionRequest) (*pdpb.GetRegionResponse, error) {
	return region(s.directory.GetRegion(ctx, r.RegionKey))
}

// GetPrevRegion implements pdpb.PDServer.
func (s *wirePD) GetPrevRegion(ctx context.Context, r *pdpb.GetRegionRequest) (*pdpb.GetRegionResponse, error) {
	return region(s.directory.GetPrevRegion(ctx, r.RegionKey))
}

// GetRegionByID implements pdpb.PDServer.
func (s *wirePD) GetRegionByID(ctx context.Context, r *pdpb.GetRegionByIDRequest) (*pdpb.GetRegionResponse, error) {
	return region(s.directory.GetRegionByID(ctx, r.RegionId))
}

// ScanRegions implements pdpb.PDServer.
func (s *wirePD) ScanRegions(ctx context.Context, r *pdpb.ScanRegionsRequest) (*pdpb.ScanRegionsResponse, error) {
	found, err := s.directory.ScanRegions(ctx, r.StartKey, r.EndKey, int(r.Limit))
	out := &pdpb.ScanRegionsResponse{Header: header()}
	for _, f := range found {
		out.Regions = append(out.Regions, &pdpb.Region{Region: f.Meta, Leader: f.Leader})
	}
	return out, err
}

// GetStore implements pdpb.PDServer.
func (s *wirePD) GetStore(ctx context.Context, r *pdpb.GetStoreRequest) (*pdpb.GetStoreResponse, error) {
	store, err := s.directory.GetStore(ctx, r.StoreId)
	return &pdpb.GetStoreResponse{Header: header(), Store: store}, err
}

// GetAllStores implements pdpb.PDServer.
func (s *wirePD) GetAllStores(ctx context.Context, _ *pdpb.GetAllStoresRequest) (*pdpb.GetAllStoresResponse, error) {
	stores, err := s.directory.GetAllStores(ctx)
	return &pdpb.GetAllStoresResponse{Header: header(), Stores: stores}, err
}
